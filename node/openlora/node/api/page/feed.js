// The node's events, for as long as the page is open: connects, counts, connects again.

const SILENCE_S = 20; // the node says something every 5 s
const FIRST_WAIT_S = 0.5;
const LAST_WAIT_S = 8;
const REASONS = {
  4008: "this page was too slow to read it",
  4029: "too many dashboards are open on it",
  1012: "the node is restarting",
};

/** Calls `on.event(event)`, `on.live()`, `on.lost(reason, wait_s)` and `on.locked()`; a key unlocks with `connect`. */
export class Feed {
  #on;
  #socket;
  #expected;
  #wait_s = FIRST_WAIT_S;
  #silence;
  #again;

  constructor(on) {
    this.#on = on;
  }

  connect() {
    clearTimeout(this.#again);
    this.#expected = 1;
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/events`);
    this.#socket = socket;
    socket.onmessage = ({ data }) => this.#heard(socket, JSON.parse(data));
    socket.onclose = ({ code }) => {
      if (socket === this.#socket) this.#closed(code);
    };
    this.#watch();
  }

  close() {
    clearTimeout(this.#again);
    clearTimeout(this.#silence);
    const socket = this.#socket;
    this.#socket = undefined;
    socket?.close();
  }

  #heard(socket, event) {
    if (socket !== this.#socket) return;
    if (event.sequence_number !== this.#expected) return socket.close(4000); // something was lost: all of it anew
    this.#expected += 1;
    this.#watch();
    if (event.type === "everything") {
      this.#wait_s = FIRST_WAIT_S;
      this.#on.live();
    }
    this.#on.event(event);
  }

  #watch() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      const socket = this.#socket;
      this.#closed(0);
      socket?.close();
    }, SILENCE_S * 1000);
  }

  async #closed(code) {
    this.#socket = undefined;
    clearTimeout(this.#silence);
    const wait_s = this.#wait_s * (0.75 + Math.random() / 2);
    this.#wait_s = Math.min(LAST_WAIT_S, this.#wait_s * 2);
    if (await this.#isLocked()) return this.#on.locked();
    this.#on.lost(REASONS[code] ?? "the node does not answer", wait_s);
    this.#again = setTimeout(() => this.connect(), wait_s * 1000);
  }

  /** A browser does not say why a WebSocket was refused; HTTP does. */
  async #isLocked() {
    try {
      return (await fetch("/v1/jobs?limit=1", { cache: "no-store" })).status === 401;
    } catch {
      return false;
    }
  }
}

/** A document of the node's. Throws an Error whose message is a sentence. */
export async function ask(path) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store" });
  } catch {
    throw new Error("The node does not answer.");
  }
  const document = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(document.error?.message ?? `The node refused: ${answer.status}.`);
  return document;
}
