// Returns what is wrong with the page that is shown: names, order and contrast, as far as a program can see them.
() => {
  const found = [];
  const note = (text, element) => found.push(`${text}: ${(element.outerHTML || "").slice(0, 120)}`);
  const visible = (element) => element.checkVisibility({ visibilityProperty: true }) && element.getClientRects().length > 0;

  if (document.documentElement.scrollWidth > innerWidth) found.push(`scrolls sideways: ${document.documentElement.scrollWidth}`);
  if (!document.documentElement.lang) found.push("no language");
  if (document.querySelectorAll("main").length !== 1) found.push("not one main");
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  let level = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3")) {
    const now = Number(heading.tagName[1]);
    if (now > level + 1) note("a heading skips a level", heading);
    level = now;
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  if (new Set(ids).size !== ids.length) found.push("an id twice");
  for (const name of ["aria-labelledby", "aria-describedby"]) {
    for (const one of document.querySelectorAll(`[${name}]`)) {
      for (const id of one.getAttribute(name).split(" ")) if (!document.getElementById(id)) note(`no ${id}`, one);
    }
  }
  const nameOf = (one) => one.getAttribute("aria-label") || one.textContent.trim() || (one.labels && one.labels[0] && one.labels[0].textContent) || "";
  for (const one of document.querySelectorAll("a[href], button, summary, input:not([type=hidden]), select, textarea, nav")) {
    if (visible(one) && !nameOf(one)) note("no name", one);
  }
  for (const one of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    if (!one.labels || !one.labels.length) note("no label", one);
  }
  for (const one of document.querySelectorAll("img")) if (!one.alt) note("no text for an image", one);
  for (const one of document.querySelectorAll("th")) if (!one.scope) note("no scope", one);

  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const [red, green, blue, alpha = 1] = parse(getComputedStyle(one).backgroundColor);
      if (alpha === 1) return [red, green, blue];
    }
    return [255, 255, 255];
  };
  const light = (rgb) => {
    const [red, green, blue] = rgb.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const seen = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !visible(element) || element.closest(".hidden, .skip")) continue;
    const style = getComputedStyle(element);
    const ink = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [a, b] = [light(parse(ink).slice(0, 3)), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const key = `${ink} on ${ground(element)}`;
    if (ratio < (large ? 3 : 4.5) && !seen.has(key)) {
      seen.add(key);
      note(`contrast ${ratio.toFixed(2)} (${key})`, element);
    }
  }
  return found;
}
