// Requests to the read service. The detail of a problem becomes the message of the error.
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export async function ask(path, options = {}) {
  const answer = await fetch(path, { headers: { Accept: "application/json" }, ...options });
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Problem(answer.status, body?.detail ?? `the service replied with status ${answer.status}`);
  return body;
}

export const inPath = (subject) => encodeURIComponent(subject);
export const subjectLink = (subject) => `#/subject/${encodeURIComponent(subject)}`;
