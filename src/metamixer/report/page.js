"use strict";
// The page is whole without this script: it adds the toggle, sorting, and values under the pointer.
(() => {
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  toggle.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  toggle.hidden = false;
  name();

  // What is wider than the page fades at its edge, and its caption says that it scrolls.
  const hint = (box) => {
    const more = box.scrollWidth - box.clientWidth;
    box.classList.toggle("cut", more > 1 && box.scrollLeft < more - 1);
    box.parentElement.querySelector(":scope > figcaption")?.classList.toggle("cut", more > 1);
  };
  for (const box of document.querySelectorAll(".scroll")) {
    hint(box);
    new ResizeObserver(() => hint(box)).observe(box);
    box.addEventListener("scroll", () => hint(box), { passive: true });
  }

  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : null;
  };
  const compare = (a, b, column) => {
    const [x, y] = [key(a, column), key(b, column)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return null; // what has no number stays below
    return a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
  };
  const sort = (table, header, column) => {
    // Numbers begin with the largest, words with A.
    const words = header.classList.contains("w");
    const first = words ? "ascending" : "descending";
    const other = words ? "descending" : "ascending";
    const order = header.getAttribute("aria-sort") === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => {
      const found = compare(a, b, column);
      return found === null ? (key(a, column) === null ? 1 : -1) : sign * found;
    });
    table.tBodies[0].append(...rows);
  };
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sort(table, header, column));
    });
  }

  const shown = (value, shares) =>
    value === null ? "–" : shares ? `${(100 * value).toFixed(1)} %` : String(Number(value.toPrecision(4)));
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const data = JSON.parse(svg.dataset.chart);
    const figure = svg.parentElement;
    const cursor = svg.querySelector(".cursor");
    const values = [...figure.querySelectorAll(".legend .value")];
    const at = figure.querySelector(".legend .at");
    const before = values.map((each) => each.textContent);
    let index = data.xs.length - 1;
    const show = (k) => {
      index = Math.min(Math.max(k, 0), data.xs.length - 1);
      cursor.setAttribute("x1", data.at[index]);
      cursor.setAttribute("x2", data.at[index]);
      cursor.classList.add("on");
      at.textContent = `at ${data.across} ${data.xs[index]}`;
      data.lines.forEach((line, n) => { values[n].textContent = shown(line.values[index], data.shares); });
    };
    const leave = () => {
      cursor.classList.remove("on");
      at.textContent = "";
      values.forEach((each, n) => { each.textContent = before[n]; });
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      let nearest = 0;
      data.at.forEach((place, k) => { if (Math.abs(place - x) < Math.abs(data.at[nearest] - x)) nearest = k; });
      show(nearest);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      show(cursor.classList.contains("on") ? index + step : index);
    });
  }
  root.dataset.ready = "1";
})();
