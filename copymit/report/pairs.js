"use strict";
// The arrow keys turn the pages.
document.addEventListener("keydown", (event) => {
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (rel && !event.altKey && !event.ctrlKey && !event.metaKey)
    document.querySelector(`a[rel="${rel}"]`)?.click();
});
