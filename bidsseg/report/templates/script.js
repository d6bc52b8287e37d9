"use strict";
// Tables: a button in each head sorts by that column, numbers as numbers, empty cells last.
for (const head of document.querySelectorAll("table.sortable th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const table = head.closest("table"), column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!x || !y) return Number(!x) - Number(!y);
      const order = x.localeCompare(y, undefined, { numeric: true });
      const numbers = Number(x) - Number(y);
      return (Number.isNaN(numbers) ? order : numbers) * (up ? 1 : -1);
    });
    table.tBodies[0].append(...rows);
  });
}
// Pictures: buttons choose the protocol, the slider fades its colours.
for (const stack of document.querySelectorAll(".stack")) {
  const viewer = stack.closest(".viewer");
  const pictures = stack.querySelectorAll("img.top"), buttons = viewer.querySelectorAll("button");
  buttons.forEach((button, chosen) => {
    button.addEventListener("click", () => {
      buttons.forEach((other, place) => {
        other.setAttribute("aria-pressed", String(place === chosen));
        pictures[place].hidden = place !== chosen;
      });
    });
  });
  viewer.querySelector("input").addEventListener("input", (event) => {
    for (const picture of pictures) picture.style.opacity = event.target.value;
  });
}
// Search fields show the rows that contain every word.
for (const field of document.querySelectorAll("input[type=search]")) {
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(field.dataset.table).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
// Copying a text; the browser may forbid the clipboard to a local file, then the text is selected.
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.innerText);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected: press Ctrl+C";
    }
  });
}
