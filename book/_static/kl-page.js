/* What every page has beside its charts: a switch for all code, a way past the text to the first control, search results
   that quote the text, and wide boxes that the keyboard can scroll. */
(function () {
  "use strict";

  // One button for all folded code of the page; what was chosen holds for other pages.
  function codeSwitch() {
    var folded = document.querySelectorAll("div.cell details.hide");
    var place = document.querySelector(".article-header-buttons");
    if (!folded.length || !place) return;
    var button = document.createElement("button");
    button.type = "button";
    button.className = "btn btn-sm kl-code-switch";
    function show(open) {
      folded.forEach(function (one) { one.open = open; });
      button.setAttribute("aria-pressed", String(open));
      button.textContent = open ? "Hide all code" : "Show all code";
    }
    button.addEventListener("click", function () {
      var open = button.getAttribute("aria-pressed") !== "true";
      try { localStorage.setItem("kl-code", open ? "shown" : "hidden"); } catch (error) { /* not kept, then */ }
      show(open);
    });
    var kept = null;
    try { kept = localStorage.getItem("kl-code"); } catch (error) { /* pages from a file may have no storage */ }
    show(kept === "shown");
    place.insertBefore(button, place.firstChild);
  }

  // From the top of the page past menus, text and code to the first figure that has a control.
  function skipToControls() {
    var place = document.querySelector("#pst-skip-link");
    var figure = Array.from(document.querySelectorAll("figure.kl-chart")).find(function (one) {
      return one.querySelector("script.kl-spec").textContent.indexOf('"bind":') > 0;
    });
    if (!place || !figure) return;
    var link = document.createElement("a");
    link.href = "#" + figure.id;
    link.textContent = "Skip to the first figure with a control";
    place.appendChild(link);
  }

  // Search quotes a page by its text; Sphinx would take all of <main>, menus first.
  function quoteText() {
    if (typeof Search === "undefined") return;
    Search.htmlToText = function (page) {
      var read = new DOMParser().parseFromString(page, "text/html");
      var text = read.querySelector("article.bd-article") || read.body;
      text.querySelectorAll(".headerlink, script, style, svg, details.hide, .math").forEach(function (one) { one.remove(); });
      return text.textContent.replace(/\s+/g, " ");
    };
  }

  // What scrolls in its own box must be reached by the keyboard, and only that.
  function scrollable() {
    function fit(box) {
      var folded = !box.clientWidth; // within what opens later: no stop of the Tab key until then
      if (folded || box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
    var watcher = new ResizeObserver(function (seen) { seen.forEach(function (one) { fit(one.target); }); });
    var boxes = ".dataframe, .highlight pre, .pst-scrollable-table-container, div.math";
    document.querySelectorAll("article :is(" + boxes + ")").forEach(function (box) { fit(box); watcher.observe(box); });
  }

  function start() {
    codeSwitch();
    skipToControls();
    quoteText();
    scrollable();
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
