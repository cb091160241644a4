// The connection to the server: listens, notices silence, comes back by itself.

const RETRY_MS = 1000;
const HUNG_MS = 6000; // an open connection on which nothing has come for so long is given up

/** Calls `hear.view(view)` and `hear.patches(patches)` with each message, and `hear.cut()` when the connection ends, for
 * as long as the page is open. */
export function follow(url, hear) {
  let source = null;
  let openedAt = 0;
  let heardAt = 0;

  function open() {
    openedAt = performance.now();
    source = new EventSource(url);
    for (const name of ["view", "patches"]) {
      source.addEventListener(name, (event) => {
        heardAt = performance.now();
        hear[name](JSON.parse(event.data));
      });
    }
    source.addEventListener("error", again);
  }

  function again() {
    source.close();
    source = null;
    hear.cut();
    setTimeout(open, RETRY_MS);
  }

  setInterval(() => {
    if (source && performance.now() - Math.max(openedAt, heardAt) > HUNG_MS) again();
  }, RETRY_MS);
  open();
}
