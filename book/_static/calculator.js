/* The calculator: what fits, what a step takes, how long an answer takes and what it costs.

   The numbers of models, devices, precisions and clocks come from kl-calculator-data.js, which the build writes from
   the package (kinetics_lab.planner.page); the law is in law.js, and a test compares both with the package. */
(function (root) {
  "use strict";
  var law = root.klLaw;

  // The whole answer to one question; numbers in, numbers out.
  function answer(data, q) {
    var model = data.models[q.model], device = data.hardware[q.hardware], policy = data.policies[q.policy];
    var stored = law.precision(data, model, q.weights, q.kv), size = stored.size, rate = device.peaks[stored.rate] || device.peak;
    var clock = q.clock ? data.clocks[q.hardware + ":" + q.clock] : null;
    var room = law.fit(model, device, size, q.n_in + q.n_out, q.batch, q.reserve, q.devices);
    if (room.split) return { room: room };
    var batch = q.batch || Math.max(room.batch, 1), seconds = {}, middle = q.n_in + q.n_out / 2;
    function at(n, rule) {
      return law.stepSeconds(device, rate, clock, law.stepParts(model, size, room.layout, rule || policy, batch, n), model.layers);
    }
    data.nodes.forEach(function (node) {
      var step = at(Math.max(q.n_in + q.n_out * node[0], 1));
      Object.keys(step).forEach(function (name) { seconds[name] = (seconds[name] || 0) + q.n_out * node[1] * step[name]; });
    });
    var first = law.prefill(model, device, size, rate, room.layout, q.n_in).first, step = at(middle), together = law.total(step);
    var decode = law.total(seconds);
    var hours = (q.answers * decode / batch * room.devices + first * room.layout.tensor) / 3600;  // of one device
    return { room: room, batch: batch, precision: stored, step: step, step_seconds: together, first: first, decode: decode,
      wait: first + decode, per_user: 1 / together, per_device: batch / together / room.devices, at: at, clock: clock,
      dollars: hours * q.price, per_million: hours * q.price / (q.answers * q.n_out) * 1e6 };
  }

  // The line that prints the same numbers.
  function command(q) {
    var words = ["kinetics-lab cost --model", q.model, "--hardware", q.hardware, "--n-in", q.n_in, "--n-out", q.n_out];
    if (q.policy !== "dense") words.push("--policy", q.policy);
    if (q.answers > 1) words.push("--n-trials", q.answers);
    if (q.weights) words.push("--weights", q.weights);
    if (q.kv) words.push("--kv", q.kv);
    if (q.batch) words.push("--batch", q.batch);
    if (q.devices) words.push("--devices", q.devices);
    if (q.reserve !== 0.1) words.push("--reserve", q.reserve);
    if (q.clock) words.push("--clock", "fitted:" + q.hardware + ":" + q.clock);
    return words.concat("--combine max").join(" ");
  }

  root.klCalculator = { answer: answer, command: command };

  // --- the page ------------------------------------------------------------------------------------

  function svg(tag, parent, attributes, text) {
    var node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.keys(attributes || {}).forEach(function (name) { node.setAttribute(name, attributes[name]); });
    if (text) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  }

  law.page("kl-calculator", root.klCalculatorData, function (place, data) {
    var usual = data.first, offered = law.choices(data), form = law.form(place, [
      { key: "model", label: "Model", options: function () { return law.names(data.models); }, usual: usual.model },
      { key: "hardware", label: "Device", options: offered.hardware, usual: usual.hardware },
      { key: "devices", label: "Devices", options: offered.devices },
      { key: "clock", label: "Clock", options: offered.clock, after: ["hardware"] },
      { key: "weights", label: "Weights", options: offered.stored(data.weights, "as published") },
      { key: "kv", label: "KV cache", options: offered.stored(data.caches, "as published") },
      { key: "policy", label: "Attention", options: function () { return Object.keys(data.policies).map(function (name) { return [name, name]; }); } },
      { key: "n_in", label: "Prompt (tokens)", least: 0, most: 1e7, whole: true, usual: usual.n_in },
      { key: "n_out", label: "Answer (tokens)", least: 1, most: 1e7, whole: true, usual: usual.n_out },
      { key: "answers", label: "Answers to a prompt", least: 1, most: 1e5, whole: true, usual: 1 },
      { key: "batch", label: "Batch (empty: what fits)", least: 1, most: 1e6, whole: true, empty: true },
      { key: "reserve", label: "Memory kept free (%)", least: 0, most: 90, share: true, usual: 10 },
      { key: "price", label: "Price of a device ($ an hour)", least: 0, most: 1e4, usual: 2.5 }], show);
    var said = law.make("p", place, "", { "class": "kl-calc-said", "aria-live": "polite" });
    var bar = law.make("div", place, null, { "class": "kl-calc-bar" }), legend = law.make("p", place, "", { "class": "kl-calc-legend" });
    var table = law.make("table", place, null, { "class": "kl-calc-table" });
    var figure = law.make("figure", place, null, { "class": "kl-calc-figure" }), copy = law.copied(place);

    function show() {
      var q = form.read();
      if (!q) { said.textContent = "A field needs another value."; return; }
      form.keep();
      copy(command(q));
      var found = answer(data, q), room = found.room;
      bar.textContent = legend.textContent = table.textContent = figure.textContent = "";
      if (room.split) { said.textContent = "It cannot be spread so: " + room.reason + "."; return; }
      var many = room.devices === 1 ? "one " + q.hardware : room.devices + " " + q.hardware
        + (room.layout.data > 1 ? ", attention data parallel" : ", tensor parallel");
      said.textContent = room.reason ? "It does not fit: " + room.reason + ". Priced as if it did."
        : q.model + " fits on " + many + " with " + room.batch.toLocaleString("en") + " sequences at their end. A step takes "
          + law.digits(1e3 * found.step_seconds) + " ms, an answer " + law.digits(found.wait) + " s"
          + (q.price ? " and $" + law.digits(found.dollars) : "") + ".";
      var names = Object.keys(found.step).filter(function (name) { return found.step[name] > 0; });
      names.forEach(function (name) {
        var part = law.make("span", bar, "", { "class": "kl-part-" + name, title: name + ": " + law.digits(1e3 * found.step[name]) + " ms" });
        part.style.flexGrow = found.step[name] / found.step_seconds;
      });
      legend.textContent = "A step at the middle of the answer: " + names.map(function (name) {
        return name + " " + law.digits(1e3 * found.step[name]) + " ms";
      }).join(", ") + ".";
      law.rows(table, told(q, found));
      chart(q, found);
    }

    function told(q, found) {
      var room = found.room, clock = found.clock;
      return [["Weights on each device", law.gb(room.weights) + " (" + found.precision.weights + ")"],
        ["Cache of a sequence on each device", law.gb(room.sequence) + " at " + (q.n_in + q.n_out).toLocaleString("en") + " tokens (" + found.precision.kv + ")"],
        ["Batch", found.batch.toLocaleString("en") + (room.reason ? "" : " of " + room.batch.toLocaleString("en") + " that fit")],
        ["Tokens a second", law.digits(found.per_user) + " for a user, " + law.digits(found.per_device) + " for a device"],
        ["Time to the first token", law.digits(found.first) + " s, one prompt at a time"],
        ["Time to an answer", law.digits(found.wait) + " s"],
        ["Cost", "$" + law.digits(found.dollars) + " for " + q.answers + " answer" + (q.answers > 1 ? "s" : "") + ", $" + law.digits(found.per_million) + " a million tokens"],
        ["Times are", clock ? "the cost law with four constants fitted to kernels that NVIDIA's collector measured; median error "
          + law.digits(100 * clock.error, 2) + " % on models it has not seen" : "a bound at the datasheet's rates: nothing runs faster"]];
    }

    // Seconds that one token takes of a device, over the context: parameters, dense attention, the chosen attention.
    function chart(q, found) {
      var width = Math.max(place.clientWidth, 300), height = 300, left = 58, right = 118, top = 26, low = 40, lines = [], i, n;
      var kinds = [["parameters", "parameters", "dense"], ["attention", "dense attention", "dense"]];
      if (q.policy !== "dense") kinds.push(["sparse", q.policy, q.policy]);
      kinds.forEach(function (kind) {
        var points = [];
        for (i = 0; i <= 80; i++) {
          n = 256 * Math.pow(2, i * 12 / 80);
          var step = found.at(n, data.policies[kind[2]]);
          var y = kind[0] === "parameters" ? step.parameters : step.attention + step.search + (step.state || 0);
          points.push([n, 1e6 * y / found.batch * found.room.devices]);
        }
        lines.push({ kind: kind[0], label: kind[1], points: points });
      });
      var ys = [].concat.apply([], lines.map(function (line) { return line.points.map(function (p) { return p[1]; }); })).filter(function (y) { return y > 0; });
      var y0 = Math.pow(10, Math.floor(Math.log10(Math.min.apply(null, ys)))), y1 = Math.pow(10, Math.ceil(Math.log10(Math.max.apply(null, ys))));
      function px(x) { return left + (width - left - right) * Math.log2(x / 256) / 12; }
      function py(y) { return top + (height - top - low) * (1 - Math.log10(Math.max(y, y0) / y0) / Math.log10(y1 / y0)); }
      var cross = lines[1].points.find(function (p, k) { return p[1] >= lines[0].points[k][1]; });
      var told = cross ? "Attention overtakes the parameters at about " + law.digits(cross[0], 2) + " tokens with this batch." : "Attention stays below the parameters up to a million tokens with this batch.";
      var picture = svg("svg", figure, { viewBox: "0 0 " + width + " " + height, width: width, height: height, role: "img", "aria-label": "Time of one token over the context, " + told });
      svg("text", picture, { x: left, y: 14, "class": "kl-axis" }, "Device-microseconds a token");
      for (var e = Math.log10(y0); e <= Math.log10(y1) + 1e-9; e++) {
        svg("line", picture, { x1: left, x2: width - right, y1: py(Math.pow(10, e)), y2: py(Math.pow(10, e)), "class": "kl-grid" });
        svg("text", picture, { x: left - 6, y: py(Math.pow(10, e)) + 4, "text-anchor": "end", "class": "kl-axis" }, law.digits(Math.pow(10, e)));
      }
      [["1K", 1024], ["8K", 8192], ["64K", 65536], ["512K", 524288]].forEach(function (tick) {
        svg("text", picture, { x: px(tick[1]), y: height - low + 16, "text-anchor": "middle", "class": "kl-axis" }, tick[0]);
      });
      svg("text", picture, { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", "class": "kl-axis" }, "Context (tokens)");
      var ends = [];
      lines.forEach(function (line) {
        var path = line.points.filter(function (p) { return p[1] > 0; }).map(function (p, k) { return (k ? "L" : "M") + px(p[0]).toFixed(1) + " " + py(p[1]).toFixed(1); }).join("");
        svg("path", picture, { d: path, "class": "kl-line kl-line-" + line.kind });
        ends.push([py(line.points[line.points.length - 1][1]), line]);
      });
      ends.sort(function (a, b) { return a[0] - b[0]; });
      ends.forEach(function (end, k) {
        if (k) end[0] = Math.max(end[0], ends[k - 1][0] + 14);
        svg("text", picture, { x: width - right + 6, y: end[0] + 4, "class": "kl-name-" + end[1].kind }, end[1].label);
      });
      if (cross) svg("circle", picture, { cx: px(cross[0]), cy: py(cross[1]), r: 4, "class": "kl-cross" });
      law.make("figcaption", figure, told + " Search included; prefill and communication left out.");
    }

    window.addEventListener("resize", show);
    show();
  });
})(this);
