/* The calculator: what fits, what a step takes, how long an answer takes and what it costs.

   The numbers of models, devices, precisions and clocks come from kl-calculator-data.js, which the build writes from
   the package (kinetics_lab.planner.page); the functions here are those of kinetics_lab.cost, and a test compares
   them on random settings. Nothing is loaded from elsewhere, nothing is sent, and what is typed is shown as text. */
(function (root) {
  "use strict";

  // --- the law, as in cost/countings.py, cost/fit.py, cost/step.py ---------------------------------

  function attended(nIn, nOut, budget) {
    var end = Math.min(budget, nIn + nOut), ramp = Math.max(end - nIn, 0);
    return end * nOut - ramp * ramp / 2;
  }

  function sawtooth(n, chunk) {
    return (Math.floor(n / chunk) * chunk * chunk + Math.pow(n % chunk, 2)) / 2;
  }

  function recent(m, nIn, nOut) {  // entries seen by each step, summed over the steps
    if (m.chunk) {
      var open = nIn % m.chunk;
      return (sawtooth(open + nOut, m.chunk) - sawtooth(open, m.chunk)) / m.stride;
    }
    return (m.window ? attended(nIn, nOut, m.window) : nIn * nOut + nOut * nOut / 2) / m.stride;
  }

  function held(m, n) {
    return Math.floor(Math.min(n, m.window || Infinity, m.chunk || Infinity) / m.stride);
  }

  function chosen(m, n) {
    var closed = m.chunk ? Math.max(Math.ceil(n / m.chunk) - 1, 0) : 0;
    var seen = Math.min(m.chunk ? n - closed * m.chunk : n, m.window || Infinity);
    return Math.min(Math.floor(seen / m.stride), m.topk || Infinity);
  }

  function share(m, layout) {  // of a mixer's cache, on one device
    var kv = m.heads && !m.latent ? Math.max(1, m.kv_heads / layout.tensor) / m.kv_heads : 1;
    return { kv: kv, index: 1, state: 1 / layout.tensor, conv: 1 / layout.tensor };
  }

  function matrices(model, layout) {  // share of each kind of parameters, on one device
    var one = 1 / layout.tensor, copied = 0, all = {};
    ["mixer", "ffn", "shared", "other", "head", "embedding", "lookup"].forEach(function (kind) { all[kind] = one; });
    model.mixers.forEach(function (m) {
      if (m.heads && m.owns) copied += m.count * model.hidden * m.entry * (share(m, layout).kv - one);
    });
    all.mixer += copied / Math.max(model.parameters.mixer, 1);
    all.experts = 1 / (layout.tensor * layout.data);
    all.router = all.vectors = 1;
    return all;
  }

  function weightBytes(model, size, layout) {
    var part = matrices(model, layout);
    return Object.keys(model.parameters).reduce(function (sum, kind) {
      return sum + part[kind] * size[kind] * model.parameters[kind];
    }, 0);
  }

  function cacheBytes(model, size, layout, n) {
    return model.mixers.reduce(function (sum, m) {
      var part = share(m, layout);
      if (!m.heads) return sum + m.count * (part.state * size.state * m.recurrent + part.conv * size.conv * m.conv);
      return sum + m.count * held(m, n) * (m.owns * part.kv * size.kv * m.entry + m.owns * part.index * size.index * m.index);
    }, 0);
  }

  function cacheRead(model, size, layout, n) {
    return model.mixers.reduce(function (sum, m) {
      var part = share(m, layout);
      if (!m.heads) return sum;
      return sum + m.count * (part.kv * size.kv * m.entry * chosen(m, n) + part.index * size.index * m.index * held(m, n));
    }, 0);
  }

  function whyNot(model, layout) {
    for (var i = 0; i < model.mixers.length; i++) {
      var m = model.mixers[i], t = layout.tensor;
      if (m.heads && m.heads % t) return m.heads + " query heads do not split over " + t + " devices";
      if (m.heads && !m.latent && t % m.kv_heads && m.kv_heads % t)
        return m.kv_heads + " KV heads neither split over " + t + " devices nor divide them";
    }
    return "";
  }

  function fit(model, device, size, context, wanted, reserve, count) {
    var tried = [], counts = count ? [count] : [1, 2, 4, 8], best = null, why = "";
    for (var i = 0; i < counts.length && !best; i++) {
      var n = counts[i], copies = n > 1 && model.mixers.some(function (m) { return m.heads && (m.latent || m.kv_heads < n); });
      var found = (copies ? [1, n] : [1]).map(function (d) { return { tensor: n / d, data: d }; }).filter(function (way) {
        why = whyNot(model, way) || why;
        return !whyNot(model, way);
      }).map(function (way) {
        var weights = weightBytes(model, size, way), memory = device.memory * (1 - reserve);
        var each = cacheBytes(model, size, way, context);
        var batch = each ? Math.max(Math.floor((memory - weights) / each), 0) * way.data : 0;
        return { layout: way, devices: n, weights: weights, sequence: each, memory: memory, batch: batch, reason: "" };
      });
      tried = tried.concat(found);
      found.sort(function (a, b) { return b.batch - a.batch || b.layout.tensor - a.layout.tensor; });
      if (found.length && found[0].batch >= (wanted || 1)) best = found[0];
    }
    if (best) return best;
    if (!tried.length) return { layout: { tensor: counts[counts.length - 1], data: 1 }, devices: 0, batch: 0, reason: why, split: true };
    tried.sort(function (a, b) { return b.batch - a.batch || b.devices - a.devices; });
    var most = tried[0], whole = weightBytes(model, size, { tensor: 1, data: 1 });
    var has = most.devices + " of these devices have " + gb(most.memory * most.devices) + " beside the reserve";
    most.reason = most.weights < most.memory
      ? "each sequence takes " + gb(most.sequence) + " a device; " + has + ", room for " + most.batch + " sequences"
      : gb(whole) + " of weights; " + has + ", " + Math.ceil(whole / most.memory) + " would hold them";
    most.batch = 0;
    return most;
  }

  function readParameters(model, batch) {
    var all = Object.assign({}, model.parameters, { embedding: 0, lookup: 0, experts: 0 });
    model.experts.forEach(function (e) {
      all.experts += e.count * e.each * e.experts * (1 - Math.pow(1 - e.chosen / e.experts, batch));
    });
    return all;
  }

  function sent(model, tokens, layout) {  // bytes that one device puts on the link
    var vector = tokens * model.hidden * 2, t = layout.tensor;
    var bytes = model.blocks * vector * 2 * (t - 1) / t;
    if (layout.data > 1) bytes += 2 * model.routed * vector / t * (1 - 1 / (t * layout.data));
    return bytes;
  }

  // One step of `batch` sequences at `context` tokens on one device: FLOP and bytes by part, as step_parts.
  function stepParts(model, size, layout, policy, batch, context) {
    var here = batch / layout.data, part = matrices(model, layout), read = readParameters(model, batch);
    var moved = Object.keys(read).reduce(function (sum, kind) { return sum + part[kind] * size[kind] * read[kind]; }, 0);
    var found = { parameters: [2 * here * model.multiplied / layout.tensor, moved], attention: [0, 0], search: [0, 0] };
    var whole = context + 0.5;
    model.mixers.forEach(function (m) {
      if (!m.heads) {
        found.state = found.state || [0, 0];
        found.state[0] += m.count * m.flops;
        found.state[1] += m.count * 2 * (m.recurrent * size.state + m.conv * size.conv);
        return;
      }
      var own = recent(m, context, 1), search = 0, searchFlops = 2 * m.index_heads * m.index, searchBytes = m.index * size.index;
      if (m.topk) { search = own; own = attended(context, 1, m.topk * m.stride) / m.stride; }
      if (m.whole && policy.tokens !== null) {
        own = attended(context, 1, policy.tokens);
        search = policy.scored * whole;
        searchFlops = m.score_flops;
        searchBytes = m.keys * size.kv;
      }
      found.attention[0] += m.count * m.flops * own;
      found.attention[1] += m.count * m.entry * size.kv * own;
      found.search[0] += m.count * searchFlops * search;
      found.search[1] += m.count * searchBytes * search;
    });
    var full = cacheRead(model, size, { tensor: 1, data: 1 }, context), kept = cacheRead(model, size, layout, context);
    ["attention", "search", "state"].forEach(function (name) {
      if (!found[name]) return;
      var on = name === "state" ? 1 / layout.tensor : kept / (full > 0 ? full : 1);
      found[name] = [here * found[name][0] / layout.tensor, here * found[name][1] * on];
    });
    found.communication = [0, sent(model, here, layout)];
    return found;
  }

  function link(device, bytes) { return device.link ? bytes / device.link : bytes > 0 ? NaN : 0; }

  // Seconds by part at the datasheet's rates (a bound), or by four constants fitted to measured times.
  function stepSeconds(device, rate, clock, parts, layers) {
    var found = {};
    Object.keys(parts).forEach(function (name) {
      var flops = parts[name][0], bytes = parts[name][1], matrices = name === "parameters";
      if (name === "communication") found[name] = link(device, bytes);
      else if (clock) found[name] = Math.max(flops / clock.matrix, bytes / (matrices ? clock.weights : clock.cache))
        + (matrices ? layers * clock.layer : 0);
      else found[name] = Math.max(flops / (matrices ? rate : device.peak), bytes / device.bandwidth);
    });
    return found;
  }

  function total(parts) { return Object.keys(parts).reduce(function (sum, name) { return sum + parts[name]; }, 0); }

  function prefill(model, device, size, rate, layout, nIn) {
    var body = model.multiplied - model.parameters.head, prompt = 2 * (body * nIn + model.parameters.head * Math.min(nIn, 1));
    var attention = model.mixers.reduce(function (sum, m) {
      if (!m.heads) return sum + m.count * m.flops * nIn;
      var seen = recent(m, 0, nIn), own = m.topk ? attended(0, nIn, m.topk * m.stride) / m.stride : seen, pairs = m.flops * own;
      if (m.unabsorbed) {
        var plain = 2 * m.heads * m.unabsorbed * seen;
        pairs = m.topk ? Math.min(pairs, plain) : plain;
      }
      return sum + m.count * (pairs + 2 * m.index_heads * m.index * (m.topk ? seen : 0));
    }, 0);
    var computed = (prompt / rate + attention / device.peak) / layout.tensor;
    return Math.max(computed, weightBytes(model, size, layout) / device.bandwidth) + link(device, sent(model, nIn, layout));
  }

  function precision(data, model, weights, kv) {
    var bytes = data.element_bytes, own = model.precision, stored = Object.assign({}, own.stored), name = own.weights, rate = own.rate;
    if (weights) {
      stored = Object.assign({}, data.plain, { kv: own.stored.kv, index: own.stored.kv });
      name = weights;
      rate = data.rates[weights] || "bf16";
    }
    if (kv) { if (stored.index === stored.kv) stored.index = kv; stored.kv = kv; }
    var size = {};
    data.kinds.forEach(function (kind) { size[kind] = bytes[stored[kind] || name]; });
    return { size: size, weights: name, kv: stored.kv, rate: rate };
  }

  // The whole answer to one question; numbers in, numbers out.
  function answer(data, q) {
    var model = data.models[q.model], device = data.hardware[q.hardware], policy = data.policies[q.policy];
    var stored = precision(data, model, q.weights, q.kv), size = stored.size, rate = device.peaks[stored.rate] || device.peak;
    var clock = q.clock ? data.clocks[q.hardware + ":" + q.clock] : null;
    var room = fit(model, device, size, q.n_in + q.n_out, q.batch, q.reserve, q.devices);
    if (room.split) return { room: room };
    var batch = q.batch || Math.max(room.batch, 1), seconds = {}, middle = q.n_in + q.n_out / 2;
    function at(n, rule) {
      return stepSeconds(device, rate, clock, stepParts(model, size, room.layout, rule || policy, batch, n), model.layers);
    }
    data.nodes.forEach(function (node) {
      var step = at(Math.max(q.n_in + q.n_out * node[0], 1));
      Object.keys(step).forEach(function (name) { seconds[name] = (seconds[name] || 0) + q.n_out * node[1] * step[name]; });
    });
    var first = prefill(model, device, size, rate, room.layout, q.n_in), step = at(middle), together = total(step);
    var decode = total(seconds);
    var hours = (q.answers * decode / batch * room.devices + first * room.layout.tensor) / 3600;  // of one device
    return { room: room, batch: batch, precision: stored, step: step, step_seconds: together, first: first, decode: decode,
      wait: first + decode, per_user: 1 / together, per_device: batch / together / room.devices, at: at, clock: clock,
      dollars: hours * q.price, per_million: hours * q.price / (q.answers * q.n_out) * 1e6 };
  }

  function gb(bytes) { return (bytes / 1e9).toLocaleString("en", { maximumFractionDigits: bytes < 1e10 ? 2 : 1 }) + " GB"; }

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

  var calculator = { answer: answer, fit: fit, precision: precision, stepParts: stepParts, command: command };
  if (typeof module === "object" && module.exports) { module.exports = calculator; return; }
  root.klCalculator = calculator;

  // --- the page ------------------------------------------------------------------------------------

  var NAMES = { parameters: "parameters", attention: "attention", search: "search", state: "state", communication: "communication" };
  var FIELDS = [  // key, label, least, most, default; what has choices is filled from the data
    ["model", "Model"], ["hardware", "Device"], ["devices", "Devices"], ["clock", "Clock"], ["weights", "Weights"], ["kv", "KV cache"],
    ["policy", "Attention"], ["n_in", "Prompt (tokens)", 0, 1e7], ["n_out", "Answer (tokens)", 1, 1e7],
    ["answers", "Answers to a prompt", 1, 1e5, 1], ["batch", "Batch (empty: what fits)", 1, 1e6, ""],
    ["reserve", "Memory kept free (%)", 0, 90, 10], ["price", "Price of a device ($ an hour)", 0, 1e4, 2.5]];

  function make(tag, parent, text, attributes) {
    var node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    Object.keys(attributes || {}).forEach(function (name) { node.setAttribute(name, attributes[name]); });
    if (parent) parent.appendChild(node);
    return node;
  }

  function svg(tag, parent, attributes, text) {
    var node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.keys(attributes || {}).forEach(function (name) { node.setAttribute(name, attributes[name]); });
    if (text) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  }

  function digits(x, n) {
    if (!isFinite(x)) return "unknown";
    if (x !== 0 && Math.abs(x) < 1e-3) return x.toExponential(1);
    return x.toLocaleString("en", { maximumSignificantDigits: n || 3 });
  }

  function choices(data, key, hardware) {
    if (key === "model") return Object.keys(data.models).map(function (name) { return [name, name, data.models[name].family]; });
    if (key === "hardware") return Object.keys(data.hardware).map(function (name) { return [name, name]; });
    if (key === "devices") return [["", "as few as hold it"]].concat([1, 2, 4, 8].map(function (n) { return [n, n]; }));
    if (key === "policy") return Object.keys(data.policies).map(function (name) { return [name, name]; });
    if (key === "weights" || key === "kv") return [["", "as published"]].concat(
      (key === "kv" ? data.caches : data.weights).map(function (name) { return [name, name]; }));
    if (key === "clock") return [["", "datasheet"]].concat(Object.keys(data.clocks).filter(function (name) {
      return name.split(":")[0] === hardware;
    }).map(function (name) { return [name.split(":")[1], "fitted to " + data.clocks[name].engine]; }));
    return null;
  }

  function fill(select, options, value) {
    select.textContent = "";
    var groups = {};
    options.forEach(function (option) {
      var parent = select;
      if (option[2]) parent = groups[option[2]] = groups[option[2]] || make("optgroup", select, null, { label: option[2] });
      make("option", parent, option[1], { value: option[0] });
    });
    select.value = options.some(function (option) { return String(option[0]) === String(value); }) ? value : options[0][0];
  }

  function page(place, data) {
    var inputs = {}, notes = {}, form = make("form", place, null, { "class": "kl-calc-form" });
    var start = new URLSearchParams(location.hash.slice(1)), usual = data.first;
    FIELDS.forEach(function (field) {
      var key = field[0], box = make("div", form, null, { "class": "kl-calc-field" });
      make("label", box, field[1], { "for": "kl-" + key });
      var given = start.get(key), options = choices(data, key, start.get("hardware") || usual.hardware);
      if (options) {
        inputs[key] = make("select", box, null, { id: "kl-" + key });
        fill(inputs[key], options, given === null ? usual[key] || (key === "policy" ? "dense" : "") : given);
      } else {
        inputs[key] = make("input", box, null, { id: "kl-" + key, type: "text", inputmode: "decimal", autocomplete: "off" });
        inputs[key].value = given === null ? (key in usual ? usual[key] : field[4]) : given;
      }
      notes[key] = make("small", box, "", { id: "kl-note-" + key, "class": "kl-calc-note" });
      inputs[key].setAttribute("aria-describedby", "kl-note-" + key);
    });
    form.addEventListener("submit", function (event) { event.preventDefault(); });
    var said = make("p", place, "", { "class": "kl-calc-said", "aria-live": "polite" });
    var bar = make("div", place, null, { "class": "kl-calc-bar" }), legend = make("p", place, "", { "class": "kl-calc-legend" });
    var table = make("table", place, null, { "class": "kl-calc-table" });
    var figure = make("figure", place, null, { "class": "kl-calc-figure" });
    var line = make("p", place), copy = make("button", line, "Copy as command", { type: "button", "class": "kl-calc-copy" });
    var code = make("code", line, "");
    copy.addEventListener("click", function () { navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; });

    function question() {
      var q = {}, right = true;
      FIELDS.forEach(function (field) {
        var key = field[0], text = inputs[key].value.trim();
        notes[key].textContent = "";
        if (choices(data, key, "")) { q[key] = key === "devices" ? Number(text) || null : text; return; }
        var number = Number(text), whole = key !== "reserve" && key !== "price";
        if (key === "batch" && text === "") { q.batch = null; return; }
        if (text === "" || !(number >= field[2] && number <= field[3]) || (whole && number % 1)) {
          notes[key].textContent = "must be a " + (whole ? "whole " : "") + "number from " + field[2] + " to " + field[3].toLocaleString("en");
          right = false;
        }
        q[key] = key === "reserve" ? number / 100 : number;
      });
      return right ? q : null;
    }

    function show() {
      var q = question();
      copy.textContent = "Copy as command";
      if (!q) { said.textContent = "A field needs another value."; return; }
      history.replaceState(null, "", "#" + new URLSearchParams(FIELDS.map(function (field) { return [field[0], inputs[field[0]].value]; })));
      code.textContent = command(q);
      var found = answer(data, q), room = found.room;
      bar.textContent = legend.textContent = table.textContent = figure.textContent = "";
      if (room.split) { said.textContent = "It cannot be spread so: " + room.reason + "."; return; }
      var many = room.devices === 1 ? "one " + q.hardware : room.devices + " " + q.hardware
        + (room.layout.data > 1 ? ", attention data parallel" : ", tensor parallel");
      said.textContent = room.reason ? "It does not fit: " + room.reason + ". Priced as if it did."
        : q.model + " fits on " + many + " with " + room.batch.toLocaleString("en") + " sequences at their end. A step takes "
          + digits(1e3 * found.step_seconds) + " ms, an answer " + digits(found.wait) + " s"
          + (q.price ? " and $" + digits(found.dollars) : "") + ".";
      var names = Object.keys(found.step).filter(function (name) { return found.step[name] > 0; });
      names.forEach(function (name) {
        var part = make("span", bar, "", { "class": "kl-part-" + name, title: name + ": " + digits(1e3 * found.step[name]) + " ms" });
        part.style.flexGrow = found.step[name] / found.step_seconds;
      });
      legend.textContent = "A step at the middle of the answer: " + names.map(function (name) {
        return NAMES[name] + " " + digits(1e3 * found.step[name]) + " ms";
      }).join(", ") + ".";
      rows(q, found).forEach(function (row) {
        var line = make("tr", table);
        make("th", line, row[0], { scope: "row" });
        make("td", line, row[1]);
      });
      chart(q, found);
    }

    function rows(q, found) {
      var room = found.room, clock = found.clock;
      return [["Weights on each device", gb(room.weights) + " (" + found.precision.weights + ")"],
        ["Cache of a sequence on each device", gb(room.sequence) + " at " + (q.n_in + q.n_out).toLocaleString("en") + " tokens (" + found.precision.kv + ")"],
        ["Batch", found.batch.toLocaleString("en") + (room.reason ? "" : " of " + room.batch.toLocaleString("en") + " that fit")],
        ["Tokens a second", digits(found.per_user) + " for a user, " + digits(found.per_device) + " for a device"],
        ["Time to the first token", digits(found.first) + " s, one prompt at a time"],
        ["Time to an answer", digits(found.wait) + " s"],
        ["Cost", "$" + digits(found.dollars) + " for " + q.answers + " answer" + (q.answers > 1 ? "s" : "") + ", $" + digits(found.per_million) + " a million tokens"],
        ["Times are", clock ? "the cost law with four constants fitted to kernels that NVIDIA's collector measured; median error "
          + digits(100 * clock.error, 2) + " % on models it has not seen" : "a bound at the datasheet's rates: nothing runs faster"]];
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
      var told = cross ? "Attention overtakes the parameters at about " + digits(cross[0], 2) + " tokens with this batch." : "Attention stays below the parameters up to a million tokens with this batch.";
      var picture = svg("svg", figure, { viewBox: "0 0 " + width + " " + height, width: width, height: height, role: "img", "aria-label": "Time of one token over the context, " + told });
      svg("text", picture, { x: left, y: 14, "class": "kl-axis" }, "Device-microseconds a token");
      for (var e = Math.log10(y0); e <= Math.log10(y1) + 1e-9; e++) {
        svg("line", picture, { x1: left, x2: width - right, y1: py(Math.pow(10, e)), y2: py(Math.pow(10, e)), "class": "kl-grid" });
        svg("text", picture, { x: left - 6, y: py(Math.pow(10, e)) + 4, "text-anchor": "end", "class": "kl-axis" }, digits(Math.pow(10, e)));
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
      make("figcaption", figure, told + " Search included; prefill and communication left out.");
    }

    form.addEventListener("input", function (event) {
      if (event.target === inputs.hardware) fill(inputs.clock, choices(data, "clock", inputs.hardware.value), inputs.clock.value);
      show();
    });
    window.addEventListener("resize", show);
    show();
  }

  document.addEventListener("DOMContentLoaded", function () {
    var place = document.getElementById("kl-calculator");
    if (!place || !root.klCalculatorData) return;
    document.querySelectorAll(".kl-calc-static").forEach(function (node) { node.hidden = true; });
    page(place, root.klCalculatorData);
  });
})(this);
