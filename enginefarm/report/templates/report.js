// The page is whole without this: it opens the model that a link leads to, and filters names.
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", reveal);
reveal();
const filter = document.getElementById("filter");
if (filter) filter.addEventListener("input", () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const part of document.querySelectorAll("[data-model]"))
    part.hidden = !part.dataset.model.includes(wanted);
});
