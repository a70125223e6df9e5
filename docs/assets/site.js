// Boxes that scroll sideways can be reached and scrolled with the keyboard; the others are no stop.
const boxes = document.querySelectorAll(".sk-plot, .sk-math, .sk-table, .sk-printed, pre > code");
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
boxes.forEach((box) => observer.observe(box));
