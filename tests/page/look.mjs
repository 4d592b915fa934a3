// Measures of what is drawn; both run inside the page.

/** Elements that reach over the right edge of the screen, and the page itself if it can be moved sideways. */
export function spill() {
  const wide = document.documentElement.clientWidth;
  const over = [...document.querySelectorAll("#page *")].filter((it) => {
    const box = it.getBoundingClientRect();
    return box.width > 1 && box.right > wide + 1 && !it.closest("svg, .unseen");
  });
  const names = over.map((it) => `${it.tagName}#${it.id}.${it.className}: ${it.textContent.slice(0, 40)}`);
  return document.documentElement.scrollWidth > wide ? [`the page is ${document.documentElement.scrollWidth} of ${wide}`, ...names] : names;
}

/** The contrast of every visible text with what is behind it, by the formula of WCAG 2. */
export function contrasts() {
  const parts = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const luminance = ({ rgb }) => {
    const [r, g, b] = rgb.map((it) => it / 255).map((it) => (it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (it) => {
    for (let at = it; at; at = at.parentElement) {
      const ground = parts(getComputedStyle(at).backgroundColor);
      if (ground.a === 1) return ground;
    }
    return { rgb: [255, 255, 255] };
  };
  const found = [];
  const texts = document.createTreeWalker(document.getElementById("page"), NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const it = node.parentElement;
    if (!node.data.trim() || !it.checkVisibility({ visibilityProperty: true }) || it.closest(".unseen, title")) continue;
    const style = getComputedStyle(it);
    const [front, back] = [luminance(parts(it instanceof SVGElement ? style.fill : style.color)), luminance(behind(it))];
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    found.push({ text: node.data.trim().slice(0, 40), contrast: Math.round(contrast * 100) / 100 });
  }
  return found;
}
