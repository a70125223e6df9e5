// Everything that moves on this site: theme, search, contents, copying. Without scripts all text,
// formulas and figures are there.
const root = new URL("../", import.meta.url);
const all = (query, from = document) => [...from.querySelectorAll(query)];
const element = (name, text, of = {}) => Object.assign(document.createElement(name), { textContent: text, ...of });

// Theme: as the system, until the reader chooses the other one
const themes = { default: "light", slate: "dark" };
const theme = document.querySelector(".sk-theme");
const system = matchMedia("(prefers-color-scheme: dark)");

function setScheme(scheme) {
  document.body.dataset.mdColorScheme = scheme;
  theme.title = theme.ariaLabel = `Theme: ${themes[scheme]}. Change it`;
}

setScheme(document.body.dataset.mdColorScheme);
theme.addEventListener("click", () => {
  const other = document.body.dataset.mdColorScheme === "slate" ? "default" : "slate";
  setScheme(other);
  if ((other === "slate") === system.matches) localStorage.removeItem("sk-theme");
  else localStorage.setItem("sk-theme", themes[other]);
});
system.addEventListener("change", () => {
  if (!localStorage.getItem("sk-theme")) setScheme(system.matches ? "slate" : "default");
});

// Labels that open a part of the navigation answer to the keyboard as buttons do
document.addEventListener("keydown", (event) => {
  if (event.target.matches("label[tabindex]") && ["Enter", " "].includes(event.key)) {
    event.preventDefault();
    event.target.click();
  }
});

// The navigation shows where this page stands in it
const here = document.querySelector(".md-nav--primary a.md-nav__link--active");
const navigation = document.querySelector(".md-sidebar--primary .md-sidebar__scrollwrap");
if (here && navigation) {
  navigation.scrollTop = here.getBoundingClientRect().top - navigation.clientHeight / 2;
}

// Contents: the section that is being read
const sections = new Map(
  all(".md-sidebar--secondary a.md-nav__link").map((link) => [
    document.getElementById(decodeURIComponent(link.hash.slice(1))),
    link,
  ]),
);
let marking = false;

function mark() {
  marking = false;
  const read = [...sections.keys()].filter((e) => e && e.getBoundingClientRect().top < 150).pop();
  for (const [heading, link] of sections) {
    link.classList.toggle("md-nav__link--active", heading === read);
  }
}

addEventListener("scroll", () => (marking ||= requestAnimationFrame(mark)), { passive: true });
mark();

// Boxes that scroll sideways can be reached and scrolled with the keyboard; the others are no stop
const resized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const box of all(".sk-plot, .sk-math, .sk-table, .sk-printed, pre > code")) resized.observe(box);

// Copying takes the code without the outputs printed below it
for (const pre of all(".highlight pre")) {
  const button = element("button", "Copy", { className: "sk-copy", type: "button", ariaLabel: "Copy this code" });
  button.addEventListener("click", async () => {
    const lines = pre.querySelector("code").textContent.split("\n");
    await navigator.clipboard.writeText(lines.filter((line) => !line.startsWith("#>")).join("\n"));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  pre.append(button);
}

// Search: the index is loaded when it is first asked
const dialog = document.querySelector(".sk-search");
const [field, results, said] = ["input", "ol", "p"].map((name) => dialog.querySelector(name));
const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
let index;

async function load() {
  const { docs } = await (await fetch(new URL("search/search_index.json", root))).json();
  return docs.map((doc) => ({ ...doc, titled: words(doc.title), said: words(doc.text) }));
}

// A section answers when each word starts one of its own; whole words count for more, and so do
// titles, and the page before its sections.
function score(doc, asked) {
  let sum = 0;
  for (const start of asked) {
    const best = (from) => Math.max(0, ...from.map((word) => (word === start) + word.startsWith(start)));
    const titled = best(doc.titled);
    const count = doc.said.filter((word) => word.startsWith(start)).length;
    if (!titled && !count) return 0;
    sum += titled * (doc.location.includes("#") ? 10 : 20) + Math.min(5, count);
  }
  return sum;
}

function excerpt(text, asked) {
  const at = Math.max(0, text.toLowerCase().search(new RegExp(`(?<![\\p{L}\\p{N}])${asked[0]}`, "u")));
  const made = element("p", at > 60 ? "… " : "");
  const parts = text.slice(Math.max(0, at - 60), at + 140).split(/([\p{L}\p{N}]+)/u);
  for (const part of parts) {
    const marked = asked.some((start) => part.toLowerCase().startsWith(start));
    made.append(marked ? element("mark", part) : part);
  }
  return made;
}

async function answer() {
  const asked = words(field.value);
  index ??= load();
  const docs = await index;
  if (asked.join() !== words(field.value).join()) return; // the reader typed on
  const found = !asked.length ? [] : docs.map((doc) => [score(doc, asked), doc]).filter(([sum]) => sum);
  found.sort(([a], [b]) => b - a);
  said.textContent = asked.length ? `${found.length || "Nothing"} found` : "";
  results.replaceChildren(
    ...found.slice(0, 20).map(([, doc]) => {
      const link = element("a", doc.title, { href: new URL(doc.location, root).href });
      const item = element("li", "");
      item.append(link, excerpt(doc.text, asked));
      return item;
    }),
  );
}

function open() {
  dialog.showModal();
  field.select();
}

field.addEventListener("input", answer);
document.querySelector(".sk-find").addEventListener("click", open);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, dialog")) {
    event.preventDefault();
    open();
  }
});
dialog.addEventListener("keydown", (event) => {
  const stops = [field, ...all("a", results)];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    event.preventDefault();
    stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(document.activeElement) + step))].focus();
  } else if (event.key === "Escape") {
    event.preventDefault(); // which would first empty the field
    dialog.close();
  } else if (event.key === "Enter" && event.target === field) {
    event.preventDefault();
    stops[1]?.click();
  }
});
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest("a")) dialog.close();
});
