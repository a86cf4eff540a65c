// The JSON under /api. A failure says what to do; the page shows it and asks again.

export class Failure extends Error {
  constructor(text, fix) {
    super(text);
    this.fix = fix;
  }
}

export async function get(path, fields = {}) {
  const given = Object.entries(fields).filter(([, value]) => value);
  const query = given.length ? `?${new URLSearchParams(given)}` : "";
  let answer;
  try {
    answer = await fetch(`/api/${path}${query}`);
  } catch {
    throw new Failure("The explorer does not answer.", "Look whether `mas explorer` still runs.");
  }
  const document = await answer.json();
  if (!answer.ok) throw new Failure(document.error.text, document.error.fix);
  return document;
}

// Calls show with what is at `path`, now and every so many milliseconds while the page can be seen.
export async function poll(path, every, show, failed) {
  for (;;) {
    try {
      show(await get(path));
      failed(null);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      failed(error);
    }
    await new Promise((done) => setTimeout(done, every));
    while (document.hidden) {
      await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
    }
  }
}
