// Creates elements from plain values. All text goes through textContent, so the name of a subject is never markup.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const byId = (id) => document.getElementById(id);

// Returns a row of buttons; one of them is pressed.
export function choice(label, options, chosen, choose) {
  const buttons = new Map();
  const press = (value) => buttons.forEach((button, key) => button.setAttribute("aria-pressed", String(key === value)));
  for (const [value, text] of options) {
    buttons.set(value, el("button", { type: "button", on: { click: () => { press(value); choose(value); } } }, text));
  }
  press(chosen);
  return el("div", { class: "choice", role: "group", "aria-label": label }, ...buttons.values());
}

export function notice(text, retry) {
  return el("div", { class: "notice" }, el("p", {}, text),
    retry ? el("button", { class: "button", type: "button", on: { click: retry } }, "Try again") : null);
}
