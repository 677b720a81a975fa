/* Brings the charts of a page to life when the reader scrolls to them.

   The page holds a static SVG and the Vega-Lite spec of each chart. The Vega bundle (kl-vega.js, beside this
   file) is loaded once, on the first chart in sight; where that fails the static picture stays. Text and
   rules are drawn in currentColor, so a change between light and dark needs nothing from this script.
   Below each chart its description and its data open as text and tables, made from the same spec. */
(function () {
  "use strict";
  var here = document.currentScript.src;
  var loading = null;

  function vega() {
    loading = loading || new Promise(function (done, failed) {
      var script = document.createElement("script");
      script.src = new URL("kl-vega.js", here).href;
      script.onload = function () { done(window.vegaEmbed); };
      script.onerror = function () { failed(new Error("kl-vega.js is missing beside kl-charts.js")); };
      document.head.appendChild(script);
    });
    return loading;
  }

  function wrap(text, most) {
    return text.split(" ").reduce(function (lines, word) {
      var last = lines[lines.length - 1];
      if (last && (last + " " + word).length <= most) lines[lines.length - 1] = last + " " + word;
      else lines.push(word);
      return lines;
    }, []);
  }

  function longest(names) {
    return Math.max.apply(null, names.map(function (name) { return String(name).length; }));
  }

  // Tables come as a row of names and rows of values.
  function tables(spec) {
    Object.keys(spec.datasets || {}).forEach(function (key) {
      var names = spec.datasets[key][0];
      spec.datasets[key] = spec.datasets[key].slice(1).map(function (row) {
        return names.reduce(function (made, name, i) { made[name] = row[i]; return made; }, {});
      });
    });
    return spec;
  }

  // The longest line in letters of the names of rows; long names take two lines where a narrow page has room for them.
  function rowNames(y, height, width) {
    var step = (height && height.step) || 340 / y.sort.length;
    if (width > 600 || step < 28 || longest(y.sort) <= 20 || !y.sort.some(isNaN)) return longest(y.sort);
    var lines = y.sort.map(function (name) { return wrap(String(name), 20); });
    var two = lines.map(function (one) { return one.length > 1; });
    var place = "[indexof(" + JSON.stringify(y.sort.map(String)) + ", datum.value)]";
    y.axis.labelExpr = JSON.stringify(lines) + place;
    y.axis.labelOffset = { condition: { test: JSON.stringify(two) + place, value: -6 }, value: 0 };
    y.axis.labelLineHeight = 12;
    y.axis.labelOverlap = false;
    return Math.max.apply(null, lines.map(longest));
  }

  // What a narrow page needs: shorter lines of text, fewer legend columns, names of bars and cells turned when
  // they are wider than their place (the rules of charts/parts.py, for another width; letters are 6.5 px wide).
  function fit(spec, width) {
    var plot = width - 60;
    (function measure(node) {
      if (!node || typeof node !== "object") return;
      if (node.y && node.y.type === "ordinal") plot = Math.min(plot, width - 25 - 6.5 * rowNames(node.y, spec.height, width));
      Object.keys(node).forEach(function (key) { if (key !== "datasets") measure(node[key]); });
    })(spec);
    (function visit(node) {
      if (!node || typeof node !== "object") return;
      if (node.legend && node.legend.columns && node.scale && node.scale.domain) {
        var all = node.scale.domain.length, room = Math.floor(plot / (42 + 6.5 * longest(node.scale.domain)));
        node.legend.columns = Math.ceil(all / Math.ceil(all / Math.max(1, room)));
        node.legend.labelLimit = plot - 30;
      }
      if (node.x && typeof node.x.title === "string") {
        var kept = ((node.x.scale || {}).range || [])[1]; // "width - 90": room for the names of lines
        node.x.title = wrap(node.x.title, Math.floor((plot - (kept ? +kept.expr.slice(8) : 0)) / 6.2));
      }
      if (node.x && node.x.type === "ordinal" && node.x.sort) {
        var place = plot / node.x.sort.length;
        var turned = place > 14 && node.x.sort.some(isNaN) && 6.8 * longest(node.x.sort) > place;
        node.x.axis.labelAngle = turned ? (place < 24 ? -70 : -35) : 0;
        node.x.axis.labelOverlap = turned ? false : "parity";
        node.x.axis.labelSeparation = 4;
      }
      Object.keys(node).forEach(function (key) { if (key !== "datasets") visit(node[key]); });
    })(spec);
    return spec;
  }

  // A slider over a list moves over positions: show the value that stands there.
  function nameSteps(live, values) {
    Object.keys(values || {}).forEach(function (name) {
      if (!values[name].length) return;
      live.querySelectorAll('input[type="range"][name="' + name + '"]').forEach(function (input) {
        var shown = input.nextElementSibling;
        function show() {
          var text = values[name][+input.value].toLocaleString("en", { maximumSignificantDigits: 6 });
          if (shown.textContent !== text) shown.textContent = text;
        }
        new MutationObserver(show).observe(shown, { childList: true }); // whenever Vega writes the position there
        show();
      });
    });
  }

  // One description is read out instead of a thousand marks (the arrow keys read those), and the menu has a name.
  function describe(live, text) {
    var picture = live.querySelector("svg.marks");
    picture.setAttribute("aria-label", text);
    Array.from(picture.children).forEach(function (part) { part.setAttribute("aria-hidden", "true"); });
    live.querySelectorAll(".chart-wrapper, svg [tabindex]").forEach(function (part) { part.removeAttribute("tabindex"); });
    var menu = live.querySelector("summary");
    if (menu) menu.setAttribute("aria-label", "Save this figure");
  }

  // What arrow keys walk through: the marks that a pointer reads, along x, then y, then the names that choose a line.
  function stops(picture) {
    var seen = {}, names = ".role-legend-label:not([pointer-events]) > text, .ends_marks > text";
    return Array.from(picture.querySelectorAll(".role-mark:not(.mark-text) > path, " + names)).map(function (part) {
      var item = [].concat(part.__data__)[0] || {}, box = part.getBoundingClientRect(), tip = item.tooltip || {};
      var lines = typeof tip === "string" ? [tip] : Object.keys(tip).map(function (name) { return name + ": " + tip[name]; });
      var entry = part.matches(names), near = item.datum && item.datum.mark; // the field around a point, which has its own mark
      var text = entry ? part.textContent + ", a line's name: Enter brings it out, or takes it back" : near ? "" : lines.join(", ");
      return { part: part, item: item, entry: entry, box: box, text: text, x: Math.round(box.x + box.width / 2), y: Math.round(box.y + box.height / 2) };
    }).filter(function (one) { // a cell and its sign are one stop
      var key = one.text + "|" + Math.round(one.x / 4) + "|" + Math.round(one.y / 4), again = !one.text || seen[key];
      seen[key] = true;
      return !again;
    }).sort(function (a, b) { return a.entry - b.entry || (a.entry ? 0 : a.x - b.x || a.y - b.y); });
  }

  // A live figure is one stop of the Tab key. Its arrow keys ring a mark, show what the pointer would, and have it read out.
  function readByKeys(figure, picture, view) {
    var said = document.querySelector(".kl-said") || make("div", document.querySelector("article") || document.body, "");
    said.className = "kl-said visually-hidden";
    said.setAttribute("role", "status");
    var ring = null, at = -1, steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 20, PageUp: -20 };
    function point(x, y, item, text) { view.tooltip().call(view, null, { clientX: x, clientY: y }, item, text); }
    function end() {
      if (ring) ring.remove();
      ring = null;
      said.textContent = "";
      point(0, 0, null, null);
    }
    function show(one, place) {
      var frame = figure.getBoundingClientRect(), box = one.box, wide = Math.max(box.width, 14) + 4, high = Math.max(box.height, 14) + 4;
      ring = ring || make("div", figure);
      ring.className = "kl-ring";
      Object.assign(ring.style, { left: one.x - wide / 2 - frame.x + "px", top: one.y - high / 2 - frame.y + "px", width: wide + "px", height: high + "px" });
      point(one.x, one.y, one.item, one.entry ? null : one.item.tooltip);
      said.textContent = one.text + " (" + place + ")";
    }
    picture.tabIndex = 0;
    picture.setAttribute("role", "application"); // so that a screen reader hands the arrow keys on
    picture.setAttribute("aria-roledescription", "chart");
    picture.addEventListener("blur", function () { at = -1; end(); });
    picture.addEventListener("focus", function () {
      if (!picture.matches(":focus-visible")) return; // by a click
      var frame = picture.getBoundingClientRect();
      said.textContent = "Arrow keys read the " + stops(picture).length + " values and names, Escape ends.";
      point(frame.x, frame.y, null, said.textContent);
    });
    picture.addEventListener("keydown", function (event) {
      var all = stops(picture), key = event.key, last = all.length - 1, one = all[at];
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (key === "Escape") { at = -1; end(); return; }
      if (key === "Enter" && one && one.entry) {
        one.part.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey: true, clientX: one.x, clientY: one.y })); // adds or takes back
        view.runAsync().then(function () {
          var out = view.data("pick_store").map(function (name) { return name.values.join(); });
          said.textContent = out.length ? "brought out: " + out.join(", ") : "all brought back";
        });
      } else if (all.length && (key in steps || key === "Home" || key === "End")) {
        var to = key === "Home" ? 0 : key === "End" ? last : at + steps[key];
        at = key in steps && Math.abs(steps[key]) === 1 ? (to < 0 ? last : to > last ? 0 : to) : Math.max(0, Math.min(last, to));
        show(all[at], at + 1 + " of " + all.length);
      } else return;
      event.preventDefault();
    });
  }

  // Names of rules keep clear of curves, marks and each other: each moves to the first place beside its rule that is free.
  function clear(picture) {
    var frame = picture.querySelector("path.background"), plot = frame && frame.getBoundingClientRect(), taken = [];
    function among(kind) {
      return Array.from(picture.querySelectorAll(kind)).filter(function (part) { return +getComputedStyle(part).opacity > 0; });
    }
    function box(part) { return part.getBoundingClientRect(); }
    function about(part) { return ([].concat(part.__data__)[0] || {}).datum || {}; }
    var names = among(".mark-text.role-mark text").filter(function (part) {
      return about(part).label === part.textContent && box(part).top > plot.top - 14;
    });
    if (!names.length) return;
    var rules = among(".mark-rule.role-mark line");
    among(".mark-line.role-mark path").forEach(function (path) {
      var at = path.getScreenCTM(), long = path.getTotalLength();
      for (var d = 0; d <= long; d += 3) {
        var point = path.getPointAtLength(d).matrixTransform(at);
        taken.push([point.x, point.y, point.x, point.y]);
      }
    });
    among(".mark-symbol.role-mark path, .ends_marks text").map(box).forEach(function (r) { taken.push([r.left, r.top, r.right, r.bottom]); });
    names.forEach(function (name) {
      var own = rules.filter(function (rule) { return about(rule).label === name.textContent; })[0], old = box(name);
      if (!own) return;
      var line = box(own), level = line.width > line.height, places = [[old.left, old.top]], w = old.width, h = old.height, k;
      var left = plot.left + 2, right = (level ? line.right : plot.right) - w - 2, above = line.top - h + 1, below = line.bottom + 1;
      if (level) {
        var rows = below + h < plot.bottom ? [above, below] : [above];
        rows.forEach(function (y) { places.push([left, y], [right, y]); });
        for (k = 1; k < 12; k++) rows.forEach(function (y) { places.push([left + (right - left) * k / 12, y]); });
      } else {
        for (k = plot.top; k < plot.bottom - h; k += h / 2) {
          [line.right + 4, line.left - 4 - w].forEach(function (x) { if (x > plot.left - 2 && x + w < plot.right + 2) places.push([x, k]); });
        }
      }
      var others = rules.filter(function (rule) { return rule !== own; }).map(box);
      function met(place) {
        var x = place[0], y = place[1] + 2, low = y + h - 5;
        function hit(r) { return r[2] > x - 1 && r[0] < x + w + 1 && r[3] > y && r[1] < low; }
        return taken.filter(hit).length + 9 * others.filter(function (r) { return hit([r.left, r.top, r.right, r.bottom]); }).length;
      }
      var best = places.map(function (place) { return [met(place), place]; }).reduce(function (a, b) { return b[0] < a[0] ? b : a; })[1];
      var moved = name.getAttribute("transform").match(/translate\(([-\d.]+)[ ,]([-\d.]+)\)/);
      name.setAttribute("transform", "translate(" + (+moved[1] + best[0] - old.left) + "," + (+moved[2] + best[1] - old.top) + ")");
      taken.push([best[0], best[1] + 2, best[0] + w, best[1] + h - 3]);
    });
  }

  // The description of a figure, with what its control is set to.
  function told(figure) {
    var spec = figure.klSpec;
    return Array.from(figure.querySelectorAll(".vega-bind")).reduce(function (text, one) {
      var input = one.querySelector("input, select"), steps = ((spec.usermeta || {}).values || {})[input.name] || [];
      var value = input.type === "range" && steps.length ? steps[+input.value] : input.value;
      return text + " Now shown: " + one.querySelector(".vega-bind-name").textContent.trim() + ": " + shown(value) + ".";
    }, spec.description);
  }

  // The tables of a figure: their titles by column, the marks that draw them, and their rows as the control has them.
  function drawn(figure) {
    var found = {}, titles = Object.create(null), param = ((figure.klSpec.params || []).filter(function (one) {
      return one.bind && one.bind.input; // a legend is bound, too
    })[0] || {}).name;
    (function visit(node, name) {
      if (!node || typeof node !== "object") return;
      name = (node.data && node.data.name) || name;
      var one = name && (found[name] = found[name] || { marks: [], read: [] });
      if (one && node.mark) one.marks.push(node.mark.type || node.mark);
      if (one && Array.isArray(node.tooltip)) node.tooltip.forEach(function (tip) { one.read.push(tip.field); });
      // a bar's share is not what its row holds
      var title = node.field && node.title && node.stack !== "normalize" && [].concat(node.title).join(" ");
      if (title) titles[node.field] = titles[node.field] || title;
      Object.keys(node).forEach(function (key) { if (key !== "datasets") visit(node[key], name); });
    })(figure.klSpec);
    var compiled = (figure.klView && figure.klView.vgSpec.data) || [];
    function root(one) {
      var above = compiled.filter(function (other) { return other.name === one.source; })[0];
      return above ? root(above) : one.name;
    }
    return Object.keys(found).map(function (name) {
      var rows = figure.klSpec.datasets[name], read = found[name].read;
      var columns = Object.keys(rows[0]).filter(function (column) { return column[0] !== "_"; }); // see charts/parts.py, inscribed
      var moved = compiled.filter(function (one) { // what the control filters or computes
        return param && root(one) === name && JSON.stringify(one.transform || []).indexOf(param) > 0;
      })[0];
      if (moved) {
        rows = figure.klView.view.data(moved.name);
        moved.transform.forEach(function (step) {
          if (step.type === "formula" && titles[step.as] && columns.indexOf(step.as) < 0) columns.push(step.as);
        });
      }
      var first = read.filter(function (column, i) { return read.indexOf(column) === i && columns.indexOf(column) >= 0; });
      columns = first.concat(columns.filter(function (column) { return first.indexOf(column) < 0; }));
      return { columns: columns, rows: rows, titles: titles, marks: found[name].marks };
    });
  }

  function make(kind, parent, text) {
    var made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    return parent.appendChild(made);
  }

  function shown(value) {
    if (typeof value !== "number") return value === null || value === undefined ? "" : String(value);
    return Math.abs(value) < 1e4 ? String(+value.toPrecision(6)) : value.toLocaleString("en", { maximumSignificantDigits: 6 });
  }

  // Hands a table over as a file; no address is asked for it.
  function save(names, rows, file) {
    var lines = [names].concat(rows).map(function (row) {
      return row.map(function (one) {
        var text = one === null || one === undefined ? "" : String(one);
        if (typeof one === "string" && /^[=+\-@\t\r]/.test(one)) text = "'" + text; // no formula to a spreadsheet
        return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
      }).join(",");
    });
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = file;
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  }

  // What stands in the box below a figure, as its control has it now.
  function fill(figure) {
    var box = figure.querySelector(".kl-data > div"), made = drawn(figure), number = figure.klNumber;
    box.textContent = "";
    make("p", box, told(figure));
    var named = made.filter(function (one) { return /^(label,[xy]|[xy],label)$/.test(one.columns.join()); }); // see charts/parts.py, rules
    if (named.length) {
      make("p", box, "Rules: " + named.map(function (one) {
        var rule = one.rows[0];
        return (rule.label || "a line") + " at " + shown(rule.x === undefined ? rule.y : rule.x);
      }).join("; ") + ".");
    }
    made.filter(function (one) { return named.indexOf(one) < 0; }).forEach(function (one, i, all) {
      var names = one.columns.map(function (column) { return one.titles[column] || column.replace(/_/g, " "); });
      var rows = one.rows.map(function (row) { return one.columns.map(function (column) { return row[column]; }); });
      var about = number + (all.length > 1 ? ", table " + (i + 1) + " of " + all.length : "");
      var kind = all.length === 1 ? "" : one.marks.indexOf("line") < 0 ? "points, " : "lines, ";
      var frame = make("div", box), table = make("table", frame), head = make("tr", make("thead", table)), body = make("tbody", table);
      frame.className = "kl-data-table";
      frame.tabIndex = 0;
      frame.setAttribute("role", "region");
      frame.setAttribute("aria-label", "Data of " + about);
      make("caption", table, about + ": " + kind + rows.length + (rows.length === 1 ? " row" : " rows"));
      names.forEach(function (name) { make("th", head, name).scope = "col"; });
      rows.forEach(function (row) {
        var line = make("tr", body);
        row.forEach(function (value) { make("td", line, shown(value)).className = typeof value === "number" ? "kl-number-cell" : ""; });
      });
      var button = make("button", box, "Download as CSV");
      button.type = "button";
      button.addEventListener("click", function () { save(names, rows, about.toLowerCase().replace(/[^a-z0-9.]+/g, "-") + ".csv"); });
    });
  }

  // The box below a figure: one click or one key away, filled when it opens and when the control moves.
  function dataBox(figure) {
    var number = figure.querySelector(".kl-number");
    figure.klSpec = tables(JSON.parse(figure.querySelector("script.kl-spec").textContent));
    figure.klNumber = ((number && number.textContent) || "this figure").replace(/: $/, "");
    var box = make("details", figure);
    box.className = "kl-data";
    make("summary", box, "Description and data of " + figure.klNumber);
    make("div", box);
    var waiting = 0;
    function refresh() {
      clearTimeout(waiting);
      waiting = setTimeout(function () {
        var picture = figure.querySelector(".kl-live svg.marks");
        if (picture) {
          picture.setAttribute("aria-label", told(figure));
          clear(picture);
        }
        if (box.open) fill(figure);
      }, 100);
    }
    figure.klRefresh = refresh;
    box.addEventListener("toggle", refresh);
    figure.addEventListener("input", refresh);
  }

  function draw(figure) {
    var text = figure.querySelector("script.kl-spec").textContent;
    var old = figure.querySelector(".kl-static, .kl-live");
    var width = figure.clientWidth;
    var spec = fit(tables(JSON.parse(text)), width);
    spec.config = Object.assign({}, spec.config, { aria: false }); // the picture gets one description: describe()
    var live = document.createElement("div");
    live.className = "kl-live kl-waiting"; // laid out but unseen until drawn: the page does not jump
    figure.insertBefore(live, figure.querySelector(".kl-data"));
    return vega().then(function (embed) {
      return embed(live, spec, {
        mode: "vega-lite",
        renderer: "svg",
        ast: true, // expressions are interpreted: the page's policy forbids code made of text
        actions: { export: true, source: false, compiled: false, editor: false },
        downloadFileName: figure.klNumber.toLowerCase().replace(/[^a-z0-9.]+/g, "-"),
      });
    }).then(function (result) {
      nameSteps(live, (spec.usermeta || {}).values);
      if (figure.klView) figure.klView.finalize();
      figure.klView = result;
      figure.klWidth = width;
      describe(live, spec.description);
      readByKeys(figure, live.querySelector("svg.marks"), result.view);
      clear(live.querySelector("svg.marks"));
      figure.klRefresh();
      old.remove();
      live.classList.remove("kl-waiting");
      figure.classList.add("kl-ready");
    }).catch(function (error) {
      live.remove();
      console.error("chart " + figure.id + ": " + error.message);
    });
  }

  function start() {
    var figures = document.querySelectorAll("figure.kl-chart");
    figures.forEach(dataBox);
    if (!("IntersectionObserver" in window)) { figures.forEach(draw); return; }
    var watcher = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) {
        if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
      });
    }, { rootMargin: "600px" });
    figures.forEach(function (figure) { watcher.observe(figure); });

    var waiting = 0; // a turned phone or a resized window: lay out titles and legends anew
    window.addEventListener("resize", function () {
      clearTimeout(waiting);
      waiting = setTimeout(function () {
        figures.forEach(function (figure) {
          if (figure.klView && Math.abs(figure.clientWidth - figure.klWidth) > 40) draw(figure);
        });
      }, 200);
    });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
