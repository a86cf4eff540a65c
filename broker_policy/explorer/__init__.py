"""The explorer: a read-only web page about a running namespace (ADR 30).

``sources`` connects to what holds the data. ``feed`` follows the chain of the audit, ``views`` and
``lifeline`` make the documents of ``/api`` out of it, ``site`` serves them and the files in ``assets``,
``gate`` says who may look, ``people`` whose certificate lets them, and ``serving`` listens.
"""
