/* Brings the charts of a page to life when the reader scrolls to them.

   The page holds a static SVG and the Vega-Lite spec of each chart. The Vega bundle (kl-vega.js, beside this
   file) is loaded once, on the first chart in sight; where that fails the static picture stays. Text and
   rules are drawn in currentColor, so a change between light and dark needs nothing from this script. */
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

  // What a narrow page needs: shorter lines of text, fewer legend columns, names of bars and cells turned when
  // they are wider than their place (the rules of charts/parts.py, for another width; letters are 6.5 px wide).
  function fit(spec, width) {
    var plot = width - 60;
    (function measure(node) {
      if (!node || typeof node !== "object") return;
      if (node.y && node.y.type === "ordinal") plot = Math.min(plot, width - 25 - 6.5 * longest(node.y.sort));
      Object.keys(node).forEach(function (key) { if (key !== "datasets") measure(node[key]); });
    })(spec);
    (function visit(node) {
      if (!node || typeof node !== "object") return;
      if (node.legend && node.legend.columns && node.scale && node.scale.domain) {
        var room = Math.floor(plot / (42 + 6.5 * longest(node.scale.domain)));
        node.legend.columns = Math.max(1, Math.min(node.scale.domain.length, room));
        node.legend.labelLimit = plot - 30;
      }
      if (node.x && typeof node.x.title === "string") node.x.title = wrap(node.x.title, Math.floor(plot / 6.2));
      if (node.x && node.x.type === "ordinal" && node.x.sort) {
        var place = plot / node.x.sort.length;
        var turned = place > 14 && node.x.sort.some(isNaN) && 6.8 * longest(node.x.sort) > place;
        node.x.axis.labelAngle = turned ? -35 : 0;
        node.x.axis.labelOverlap = turned ? false : "parity";
      }
      Object.keys(node).forEach(function (key) { if (key !== "datasets") visit(node[key]); });
    })(spec);
    if (Array.isArray(spec.title)) spec.title = wrap(spec.title.join(" "), Math.floor((width - 50) / 8.5));
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

  // One description is read out instead of a thousand marks, and the menu has a name.
  function describe(live, text) {
    var picture = live.querySelector("svg.marks");
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", text);
    picture.removeAttribute("aria-roledescription");
    Array.from(picture.children).forEach(function (part) { part.setAttribute("aria-hidden", "true"); });
    live.querySelectorAll(".chart-wrapper, svg [tabindex]").forEach(function (part) { part.removeAttribute("tabindex"); });
    var menu = live.querySelector("summary");
    if (menu) menu.setAttribute("aria-label", "Save this figure, or see its data");
  }

  function draw(figure) {
    var text = figure.querySelector("script.kl-spec").textContent;
    var old = figure.querySelector(".kl-static, .kl-live");
    var width = figure.clientWidth;
    var spec = fit(tables(JSON.parse(text)), width);
    spec.config = Object.assign({}, spec.config, { aria: false }); // the picture gets one description: describe()
    var live = document.createElement("div");
    live.className = "kl-live kl-waiting"; // laid out but unseen until drawn: the page does not jump
    figure.appendChild(live);
    return vega().then(function (embed) {
      return embed(live, spec, {
        mode: "vega-lite",
        renderer: "svg",
        ast: true, // expressions are interpreted: the page's policy forbids code made of text
        actions: { export: true, source: true, compiled: false, editor: false },
        downloadFileName: figure.id,
      });
    }).then(function (result) {
      nameSteps(live, (spec.usermeta || {}).values);
      if (figure.klView) figure.klView.finalize();
      figure.klView = result;
      figure.klWidth = width;
      describe(live, spec.description);
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
