// Stands in front of Material's search worker, which is loaded together with the index at the
// first question, so that a visit without a search pays for neither.
let setup;
let ready = false;
let waiting = [];
const answer = self.postMessage.bind(self);
const tell = (data) => dispatchEvent(new MessageEvent("message", { data }));

addEventListener("message", (event) => {
  if (ready || !event.isTrusted) return; // Material's own listener takes it
  event.stopImmediatePropagation();
  if (event.data.type === 0) {
    setup = event.data;
    answer({ type: 1 });
  } else if (!event.data.data) {
    answer({ type: 3, data: { items: [] } }); // Material asks nothing when a page opens
  } else {
    waiting.push(event.data);
    if (waiting.length === 1) load().catch(() => (waiting = []));
  }
});

self.postMessage = (message) => {
  if (message.type !== 1) return answer(message);
  ready = true;
  waiting.forEach(tell);
};

async function load() {
  const response = await fetch(new URL("../../../search/index.json", location));
  const index = await response.json();
  importScripts("material.js");
  tell({ type: 0, data: { ...setup.data, ...index } });
}
