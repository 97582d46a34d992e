// Draws one view of a sentence. Every text is put in by textContent: whatever a sentence holds is shown as it is.
const SVG = "http://www.w3.org/2000/svg";

function add(parent, tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return parent.appendChild(made);
}

function addShape(parent, tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return parent.appendChild(made);
}

// view: {words, stays, written, near, place} or {message}; background: {texts, mapped, sides, untrained}.
function drawView(element, view, background) {
  element.replaceChildren();
  if (view.message) {
    add(element, "p", view.message, "note");
    return;
  }
  add(element, "h2", "What the encoder reads");
  const words = add(element, "div", undefined, "words");
  view.words.forEach((word, place) => {
    add(words, "span", word, view.stays[place] ? "stays" : "gone");
    words.append(" ");
  });
  add(element, "p", `${view.stays.filter(Boolean).length} of ${view.words.length} words stay.`, "note");

  add(element, "h2", "What the decoder writes from the vector alone");
  if (view.written === null) add(element, "p", `Not shown: ${background.untrained}.`, "note");
  else add(element, "p", view.written, "written");

  add(element, "h2", "Nearest sentences of the text, with their cosine");
  const lists = add(element, "div", undefined, "sides");
  const rows = view.near.map((near) => near.map(([row]) => row));
  view.near.forEach((near, side) => {
    const column = add(lists, "div", undefined, "near");
    add(column, "h3", background.sides[side].name);
    const list = add(column, "ol");
    for (const [row, cosine] of near) {
      const item = add(list, "li", undefined, rows[1 - side].includes(row) ? "both" : "");
      add(item, "span", cosine);
      item.append(background.texts[row]);
    }
  });
  const shared = rows[0].filter((row) => rows[1].includes(row)).length;
  add(element, "p", `${shared} of ${rows[0].length} are named by both models${shared ? " (bold)" : ""}.`, "note");

  add(element, "h2", "Map of the vectors");
  const mapped = Math.min(background.mapped, background.texts.length);
  add(element, "p", `Grey: ${mapped} sentences of the text. Orange: the nearest ones. Blue cross: what the encoder reads. ` +
    "Point at a dot or tap it to read its sentence.", "note");
  const maps = add(element, "div", undefined, "sides maps");
  background.sides.forEach((side, number) => drawMap(maps, side, rows[number], view.place[number], mapped, background.texts));
}

function drawMap(parent, side, near, place, mapped, texts) {
  const column = add(parent, "div", undefined, "map");
  add(column, "h3", side.name);
  const half = 0.1 + Math.max(...side.places.map(([, y]) => Math.abs(y)), Math.abs(place[1]));
  const viewBox = `-1.2 ${-half} 2.4 ${2 * half}`;
  const picture = addShape(column, "svg", { viewBox, role: "img", "aria-label": `map of ${side.name}` });
  const share = `These two axes hold ${Math.round(100 * side.share)} % of the variance.`;
  const caption = add(column, "p", share, "note");
  const dot = (row, attributes) => {
    const [x, y] = side.places[row];
    const made = addShape(picture, "circle", { cx: x, cy: -y, ...attributes });
    for (const event of ["pointerenter", "click"]) made.addEventListener(event, () => (caption.textContent = texts[row]));
  };
  for (let row = 0; row < mapped; row++) dot(row, { r: 0.022 });
  for (const row of near) dot(row, { r: 0.035, class: "near" });
  const [x, y] = [place[0], -place[1]];
  addShape(picture, "path", { d: `M${x - 0.07} ${y - 0.07}l.14 .14m0 -.14l-.14 .14` });
}
