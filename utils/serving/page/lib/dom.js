// Building and updating elements. Text from the server only ever becomes text nodes and attribute
// values, never markup, so a class called "<img onerror=...>" is shown as it is written.

const SVG = "http://www.w3.org/2000/svg";

/**
 * A new element. Attributes: functions become listeners ("onclick"), true and false switch an
 * attribute on and off, null leaves it out. Children: elements and texts; null leaves one out.
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    setAttribute(node, name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function setAttribute(node, name, value) {
  if (typeof value === "function") {
    node.addEventListener(name.replace(/^on/, ""), value);
  } else if (value === true) {
    node.setAttribute(name, "");
  } else if (value !== false && value !== null && value !== undefined) {
    node.setAttribute(name, value);
  }
}

/** A button that submits nothing. */
export function button(attributes, ...children) {
  return element("button", { type: "button", ...attributes }, ...children);
}

/**
 * Does something for which a button is pressed; until it is done, further presses do nothing. The
 * button keeps the focus, which one that is `disabled` would lose.
 */
export async function whileBusy(node, work) {
  if (isOff(node)) {
    return;
  }
  setOff(node, true);
  try {
    await work();
  } finally {
    setOff(node, false);
  }
}

/** Async work for each press of a button; see whileBusy. */
export function onPress(node, work) {
  node.addEventListener("click", () => whileBusy(node, work));
}

/** Whether a button does nothing at present, and says so. */
export function isOff(node) {
  return node.getAttribute("aria-disabled") === "true";
}

export function setOff(node, off) {
  if (off) {
    node.setAttribute("aria-disabled", "true");
  } else {
    node.removeAttribute("aria-disabled");
  }
}

/** A symbol of index.html; the text beside it, or the button's label, says what it means. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Sets the text where it differs, so that a selection and a screen reader are left in peace. */
export function setText(node, text) {
  const wanted = String(text ?? "");
  if (node.textContent !== wanted) {
    node.textContent = wanted;
  }
}

export function show(node, isShown) {
  node.hidden = !isShown;
}

/**
 * Children of a container that follow a list: each item keeps its node for as long as it is there,
 * so that focus, open details and loaded images stay.
 */
export class KeyedList {
  constructor(container, keyOf, create) {
    this.container = container;
    this.keyOf = keyOf;
    this.create = create; // item -> {node, update(item), close()}; update and close may lack
    this.parts = new Map();
  }

  update(items) {
    const wanted = new Set(items.map(this.keyOf));
    for (const [key, part] of this.parts) {
      if (!wanted.has(key)) {
        this.remove(key, part);
      }
    }
    let place = this.container.firstChild;
    for (const item of items) {
      const part = this.partOf(item);
      if (part.node === place) {
        place = place.nextSibling;
      } else {
        moveBefore(this.container, part.node, place);
      }
    }
  }

  partOf(item) {
    const key = this.keyOf(item);
    if (!this.parts.has(key)) {
      this.parts.set(key, this.create(item));
    }
    const part = this.parts.get(key);
    part.update?.(item);
    return part;
  }

  remove(key, part) {
    part.close?.();
    part.node.remove();
    this.parts.delete(key);
  }

  close() {
    for (const [key, part] of [...this.parts]) {
      this.remove(key, part);
    }
  }
}

/** Moving a node takes the focus from what is in it; it is given back. */
function moveBefore(container, node, place) {
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  container.insertBefore(node, place);
  focused?.focus({ preventScroll: true });
}

let announcement = 0;

/** Says something to a screen reader: what happened, not each step of it. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  clearTimeout(announcement);
  setText(announcer, ""); // else the same text a second time would change nothing
  announcement = setTimeout(() => setText(announcer, text), 60);
}

let lastId = 0;

/** An id that nothing else on the page has, to join a label or a remark to a field. */
export function newId(name) {
  lastId += 1;
  return `${name}-${lastId}`;
}

/** The sentence of an error where it belongs; hidden while there is none. */
export function notice() {
  const node = element("p", { class: "notice bad", role: "alert", hidden: true });
  return {
    node,
    say(text) {
      setText(node, text ?? "");
      show(node, Boolean(text));
    },
  };
}

/** What stands where there is nothing yet: a title, and what to do about it. */
export function emptyState(title, ...children) {
  return element(
    "div",
    { class: "empty" },
    element("p", { class: "empty-title" }, title),
    element("p", {}, ...children),
  );
}
