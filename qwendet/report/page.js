"use strict";
// Pictures are made when they are shown, so that the page opens at once however many there are.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 12;
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const pictures = byId("pictures");
  let matching = [];
  let shown = 0;

  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  const filters = () => ({ label: byId("label").value, kind: byId("kind").value, run: byId("run").value });

  // A box is [x, y, width, height, label, score, kind, label it is about].
  const isWanted = (box, wanted) =>
    box[6] !== null &&
    (!wanted.kind || box[6] === wanted.kind) &&
    (!wanted.label || String(box[4]) === wanted.label || String(box[7]) === wanted.label);

  const faultsOf = (run, wanted) => [...run.objects, ...run.found].filter((box) => isWanted(box, wanted));

  const runsOf = (image, wanted) =>
    image.runs.map((run, index) => ({ run, index })).filter(({ index }) => !wanted.run || String(index) === wanted.run);

  const describe = (box) => {
    const name = data.labels[box[4]];
    if (box[5] === null) return `missed ${name}`;
    const about = box[7] === null ? "" : `, is ${data.labels[box[7]]}`;
    return `${box[6]} ${name} ${box[5].toFixed(2)}${about}`;
  };

  const classOf = (box) => (box[5] === null ? (box[6] ? "missed" : "found") : box[6] ? "wrong" : "right");

  const draw = (box, size) => {
    const rect = document.createElementNS(SVG, "rect");
    const [x, y, width, height] = box;
    for (const [name, value] of Object.entries({ x, y, width, height })) rect.setAttribute(name, value);
    rect.setAttribute("class", classOf(box));
    const title = document.createElementNS(SVG, "title");
    const score = box[5] === null ? "" : ` ${box[5].toFixed(2)}`;
    title.textContent = box[6] ? describe(box) : `${data.labels[box[4]]}${score}`;
    rect.append(title);
    return rect;
  };

  const panel = (image, { run, index }, wanted) => {
    const element = make("div", "panel");
    if (data.runs.length > 1) element.append(make("b", "", data.runs[index]));
    const frame = make("div", "frame");
    frame.style.aspectRatio = `${image.size[0]} / ${image.size[1]}`;
    const picture = make("img");
    picture.decoding = "async";
    picture.alt = image.name;
    picture.src = `data:image/jpeg;base64,${image.jpeg}`;
    const overlay = document.createElementNS(SVG, "svg");
    overlay.setAttribute("viewBox", `0 0 ${image.size[0]} ${image.size[1]}`);
    overlay.setAttribute("preserveAspectRatio", "none");
    const faults = make("ul", "faults");
    const isFiltered = wanted.label || wanted.kind;
    for (const box of [...run.objects, ...run.found]) {
      const rect = draw(box, image.size);
      overlay.append(rect);
      if (!isWanted(box, wanted)) {
        if (isFiltered) rect.classList.add("faint");
        continue;
      }
      const item = make("li", classOf(box), describe(box));
      for (const [event, lit] of [["mouseenter", true], ["mouseleave", false], ["click", true]])
        item.addEventListener(event, () => rect.classList.toggle("lit", lit));
      faults.append(item);
    }
    frame.append(picture, overlay);
    element.append(frame, faults);
    return element;
  };

  const card = (image, wanted) => {
    const element = make("article", "card picture");
    element.append(make("p", "", image.name));
    const panels = make("div", "panels");
    for (const entry of runsOf(image, wanted)) panels.append(panel(image, entry, wanted));
    element.append(panels);
    return element;
  };

  const showMore = () => {
    const wanted = filters();
    const next = matching.slice(shown, shown + PAGE);
    pictures.append(...next.map((image) => card(image, wanted)));
    shown += next.length;
    byId("more").hidden = shown >= matching.length;
    byId("count").textContent = `${shown} of ${matching.length} images`;
  };

  const dimOthers = (label) => {
    const name = label ? data.labels[label] : "";
    for (const element of document.querySelectorAll("#curves [data-label]"))
      element.classList.toggle("dimmed", Boolean(name) && element.dataset.label !== name);
  };

  const apply = () => {
    const wanted = filters();
    const severity = (image) =>
      runsOf(image, wanted).flatMap(({ run }) => faultsOf(run, wanted)).reduce((sum, box) => sum + (box[5] ?? 1), 0);
    matching = data.images
      .map((image) => [severity(image), image])
      .filter(([value]) => value > 0)
      .sort(([a], [b]) => b - a)
      .map(([, image]) => image);
    shown = 0;
    pictures.replaceChildren();
    pictures.style.setProperty("--panels", wanted.run ? 1 : Math.min(2, data.runs.length));
    dimOthers(wanted.label);
    showMore();
  };

  byId("filters").addEventListener("change", apply);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", showMore);
  apply();
})();
