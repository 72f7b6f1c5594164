"use strict";
const all = (selector) => [...document.querySelectorAll(selector)];
const body = document.querySelector("tbody"), rows = [...body.rows], large = document.querySelector("dialog");
const find = document.querySelector("#find"), select = document.querySelector("#sort"), heads = all("thead th");
let wanted = "", column = -1, rising = true;

function show() {
  const word = find.value.toLowerCase();
  for (const row of rows) {
    const text = row.querySelector(".name").textContent + "\n" + row.querySelector(".told").textContent;
    row.hidden = (wanted && row.dataset.decision !== wanted) || !text.toLowerCase().includes(word);
  }
  for (const dot of all("svg a")) dot.style.display = document.querySelector(dot.getAttribute("href")).hidden ? "none" : "";
  for (const button of all("#filters button")) button.setAttribute("aria-pressed", button.value === wanted);
  const left = rows.filter((row) => !row.hidden).length;
  document.querySelector("#shown").textContent = left === rows.length ? "" : `${left} of ${rows.length} films are shown`;
}

function sort(by, up) {
  [column, rising] = [by, up];
  const value = (row) => row.cells[by].dataset.value;
  const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
  const empty = (row) => value(row) === "";
  const sorted = [...rows].sort((a, b) => empty(a) - empty(b) || compare(value(a), value(b)) * (up ? 1 : -1));
  body.append(...sorted);
  heads.forEach((head, i) => i === by ? head.setAttribute("aria-sort", up ? "ascending" : "descending") : head.removeAttribute("aria-sort"));
}

heads.forEach((head, i) => head.querySelector("button")?.addEventListener("click", () => sort(i, i === column ? !rising : true)));
select.addEventListener("change", () => sort(...select.value.split(" ").map(Number)));
find.addEventListener("input", show);
for (const button of all("#filters button")) button.addEventListener("click", () => { wanted = button.value; show(); });
for (const link of all(".picture")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    large.querySelector("img").src = link.querySelector("img").src;
    large.showModal();
  });
}
large.addEventListener("click", () => large.close());
show();
