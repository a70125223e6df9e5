// Boxes that scroll sideways can be reached and scrolled with the keyboard; the others are no stop.
const boxes = document.querySelectorAll(".sk-plot, .sk-math, .sk-table, .sk-printed, pre > code");
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
boxes.forEach((box) => observer.observe(box));

// Copying takes the code without the outputs printed below it.
for (const pre of document.querySelectorAll(".highlight pre")) {
  const button = document.createElement("button");
  button.className = "sk-copy";
  button.type = "button";
  button.textContent = "Copy";
  button.ariaLabel = "Copy this code";
  button.addEventListener("click", async () => {
    const lines = pre.querySelector("code").textContent.split("\n");
    await navigator.clipboard.writeText(lines.filter((line) => !line.startsWith("#>")).join("\n"));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  pre.append(button);
}
