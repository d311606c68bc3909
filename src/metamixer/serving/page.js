"use strict";
// All that varies is set as text, never as markup: names of classes, runs and files come from anywhere.
const AT_ONCE = 4;
const TOP = 5;
const find = (id) => document.getElementById(id);
const waiting = [];
const about = fetch("/model").then((reply) => reply.json());
let running = 0, done = 0, all = 0;

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function picture(source, text) {
  const made = element("img");
  made.alt = text;
  made.addEventListener("load", () => made.classList.toggle("small", Math.min(made.naturalWidth, made.naturalHeight) < 128));
  made.src = source;
  return made;
}

async function ask(file, of) {
  const limit = (await about).max_bytes;
  if (file.size > limit) throw new Error(`${file.size.toLocaleString("en")} bytes; at most ${limit.toLocaleString("en")} are accepted`);
  const query = new URLSearchParams({ top: TOP, maps: true });
  if (of !== undefined) query.set("class", of);
  const kind = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  const reply = await fetch(`/predict?${query}`, { method: "POST", body: file, headers: { "Content-Type": kind } });
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

function network(one, again) {
  const card = element("section", "", "network");
  card.append(element("h3", one.name));
  if (one.map) {
    const map = element("figure");
    map.append(picture(one.map, `Activation map of ${one.name} for ${one.map_of}`), element("figcaption", `map: ${one.map_of}`, "soft"));
    card.append(map);
  }
  const list = element("ul", "", "classes");
  for (const [name, share] of Object.entries(one.probabilities)) {
    const row = element("button");
    row.type = "button";
    row.disabled = !one.map;
    if (one.map) {
      row.title = `Show where the networks see ${name}`;
      row.setAttribute("aria-pressed", name === one.map_of);
      row.addEventListener("click", () => again(name));
    }
    const bar = element("progress");
    bar.value = share;
    bar.setAttribute("aria-hidden", "true");
    row.append(element("span", name, "title"), element("span", percent(share), "share"), bar);
    const item = element("li");
    item.append(row);
    list.append(item);
  }
  card.append(list);
  return card;
}

function show(card, file, answer) {
  const head = element("div"), body = element("div"), networks = element("div", "", "networks");
  head.append(picture(answer.image, "The image as the networks get it"), element("p", file.name, "soft"));
  body.append(element("h2", `${answer.class}, ${percent(answer.probability)}`));
  networks.append(...answer.networks.map((one) => network(one, (of) => work(card, file, of))));
  body.append(networks);
  card.replaceChildren(head, body);
}

async function work(card, file, of) {
  card.setAttribute("aria-busy", "true");
  try {
    show(card, file, await ask(file, of));
  } catch (error) {
    const body = element("div");
    body.append(element("h2", "not classified"), element("p", error.message || String(error), "error"));
    card.replaceChildren(element("p", file.name, "soft"), body);
  }
  card.removeAttribute("aria-busy");
}

function count() {
  find("bar").hidden = !all;
  find("count").textContent = `${done} of ${all} ${all === 1 ? "image" : "images"}`;
}

async function next() {
  if (running >= AT_ONCE || !waiting.length) return;
  running += 1;
  const [card, file] = waiting.shift();
  await work(card, file);
  running -= 1;
  if (card.isConnected) done += 1;
  count();
  next();
}

function add(files) {
  for (const file of files) {
    const card = element("article");
    card.append(element("p", file.name, "soft"), element("p", "waiting", "soft"));
    find("results").prepend(card);
    waiting.push([card, file]);
    all += 1;
    next();
  }
  count();
}

find("files").addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
find("clear").addEventListener("click", () => { waiting.length = 0; done = all = 0; find("results").replaceChildren(); count(); });
document.addEventListener("paste", (event) => add(event.clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); find("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("drop").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
about.then((model) => {
  const many = (list, word, words) => `${list.length} ${list.length === 1 ? word : words}`;
  const { height, width, channels } = model.size;
  document.title = find("name").textContent = model.name;
  find("about").textContent = `${many(model.networks, "network", "networks")}, ${many(model.classes, "class", "classes")}; ` +
    `images are prepared to ${width} x ${height}, ${channels === 1 ? "grey" : "colour"}`;
});
