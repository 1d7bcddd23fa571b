// The page's colours as charts and graphs take them: those of the theme that is shown now.

/** A function from a custom property's name to its colour as rgb(). */
export function theme() {
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const names = ["ink", "quiet", "line", "paper", "accent", "chip", "heat-low", "heat-high"];
  const found = new Map(names.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  }));
  probe.remove();
  return (name) => found.get(name);
}
