/* What every page has beside its charts: a switch for all code, a way past the text to the first control, search results
   that quote the text, wide tables as cards on a phone, and wide boxes that the keyboard can scroll. */
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

  // Gives each cell the name of its column, and each row the names that an earlier row holds for it, too.
  function nameCells(table) {
    var names = [], held = [];
    Array.from(table.tHead ? table.tHead.rows : []).forEach(function (row) {
      var place = 0;
      Array.from(row.cells).forEach(function (cell) {
        var text = cell.textContent.trim();
        for (var end = place + cell.colSpan; place < end; place++) {
          names[place] = names[place] && text ? names[place] + ", " + text : names[place] || text;
        }
      });
    });
    Array.from(table.tBodies).forEach(function (body) {
      Array.from(body.rows).forEach(function (row) {
        var place = 0, groups = [];
        function skip() {
          for (; held[place] && held[place].rows; place++) { groups.push(held[place].text); held[place].rows -= 1; }
        }
        Array.from(row.cells).forEach(function (cell) {
          skip();
          if (names[place] && cell.textContent.trim()) cell.dataset.label = names[place] + ": ";
          held[place] = { rows: cell.rowSpan - 1, text: cell.textContent.trim() };
          place += cell.colSpan;
        });
        skip();
        if (groups.length) row.dataset.group = groups.join(", ");
      });
    });
  }

  // Below a long list of cards a button that shows the rest of them; print shows them all.
  function cut(table) {
    var rows = table.tBodies.length ? table.tBodies[0].rows.length : 0, button = table.klButton;
    if (rows < 12) return;
    if (!button) {
      button = table.klButton = document.createElement("button");
      button.type = "button";
      button.className = "kl-show-all";
      button.addEventListener("click", function () { show(!table.classList.toggle("kl-cut")); });
      table.insertAdjacentElement("afterend", button);
    }
    function show(all) {
      button.setAttribute("aria-expanded", String(all));
      button.textContent = all ? "Show the first 8 rows" : "Show all " + rows + " rows";
    }
    table.classList.add("kl-cut");
    show(false);
  }

  // A table that is wider than the page breaks its lines, and on a phone becomes a list of cards: no column is out of sight.
  function stackTables() {
    function fit(table) {
      table.classList.remove("kl-stack", "kl-tight", "kl-cut");
      if (![table, table.parentElement].some(function (box) { return box.scrollWidth > box.clientWidth + 1; })) return;
      if (window.innerWidth > 600) { table.classList.add("kl-tight"); return; }
      if (!table.klNamed) nameCells(table);
      table.klNamed = true;
      table.classList.add("kl-stack");
      cut(table);
    }
    var widths = new Map();
    var watcher = new ResizeObserver(function (seen) {
      seen.forEach(function (one) {
        var width = Math.round(one.contentRect.width);
        if (!width || widths.get(one.target) === width) return; // within what opens later, or only taller
        widths.set(one.target, width);
        one.target.querySelectorAll(":scope > table").forEach(fit);
      });
    });
    document.querySelectorAll("article :is(table.dataframe, table.table):not(.kl-claims, .kl-cards)").forEach(function (table) {
      watcher.observe(table.parentElement);
    });
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
    var found = document.querySelectorAll("article :is(" + boxes + ")");
    found.forEach(function (box) { fit(box); watcher.observe(box); });
    // A letter form or a style that comes late makes the text wider and leaves its box as it is.
    document.fonts.ready.then(function () { found.forEach(fit); });
    window.addEventListener("load", function () { found.forEach(fit); });
  }

  function start() {
    codeSwitch();
    skipToControls();
    quoteText();
    stackTables();
    scrollable();
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
