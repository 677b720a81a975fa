/* What the answer pages share: the cost law, and fields whose values stand in the address.

   The functions are those of kinetics_lab.cost, and tests compare them on random settings. Nothing is loaded from
   elsewhere, nothing is sent, and what is typed is shown as text. */
(function (root) {
  "use strict";

  // --- the law, as in cost/countings.py, cost/request.py, cost/fit.py, cost/step.py ----------------

  // The mean of `read` over lengths of which E[L] and E[L^2] are known (no second one: all have one length).
  function mean(read, nOut, square) {
    if (square === undefined) return read(nOut);
    var spread = Math.sqrt(Math.max(square - nOut * nOut, 0)), wide = spread > nOut;
    var high = wide ? square / Math.max(nOut, 1e-300) : nOut + spread, weight = wide ? nOut / Math.max(high, 1e-300) : 0.5;
    return weight * read(high) + (1 - weight) * read(Math.max(nOut - spread, 0));
  }

  function attended(nIn, nOut, budget, square) {
    return mean(function (length) {
      var end = Math.min(budget, nIn + length), ramp = Math.max(end - nIn, 0);
      return end * length - ramp * ramp / 2;
    }, nOut, square);
  }

  function sawtooth(n, chunk) { return (Math.floor(n / chunk) * chunk * chunk + Math.pow(n % chunk, 2)) / 2; }

  function recent(m, nIn, nOut, square) {  // entries seen by each step, summed over the steps
    if (m.chunk) {
      var open = nIn % m.chunk;
      return (mean(function (length) { return sawtooth(open + length, m.chunk); }, nOut, square) - sawtooth(open, m.chunk)) / m.stride;
    }
    if (m.window) return attended(nIn, nOut, m.window, square) / m.stride;
    return (nIn * nOut + (square === undefined ? nOut * nOut : square) / 2) / m.stride;
  }

  function held(m, n) { return Math.floor(Math.min(n, m.window || Infinity, m.chunk || Infinity) / m.stride); }

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
    model.mixers.forEach(function (m) { if (m.heads && m.owns) copied += m.count * model.hidden * m.entry * (share(m, layout).kv - one); });
    all.mixer += copied / Math.max(model.parameters.mixer, 1);
    all.experts = 1 / (layout.tensor * layout.data);
    all.router = all.vectors = 1;
    return all;
  }

  function weightBytes(model, size, layout) {
    var part = matrices(model, layout);
    return Object.keys(model.parameters).reduce(function (sum, kind) { return sum + part[kind] * size[kind] * model.parameters[kind]; }, 0);
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
    if (!tried.length)
      return { layout: { tensor: counts[counts.length - 1], data: 1 }, devices: 0, batch: 0, reason: model.name + ": " + why, split: true };
    tried.sort(function (a, b) { return b.batch - a.batch || b.devices - a.devices; });
    var most = tried[0], whole = weightBytes(model, size, { tensor: 1, data: 1 });
    var has = most.devices + " x " + device.name + (most.devices > 1 ? " have " : " has ") + gb(most.memory * most.devices, 1);
    most.reason = model.name + ": " + gb(whole, 1) + " of weights" + (most.weights < most.memory
      ? " and " + Math.round(wanted || 1).toLocaleString("en") + " x " + gb(most.sequence, 2) + " of cache a device at "
        + Math.round(context).toLocaleString("en") + " tokens; " + has + " beside the reserve, room for " + most.batch.toLocaleString("en") + " sequences"
      : "; " + has + " beside the reserve, " + Math.ceil(whole / most.memory) + " would hold them");
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

  function weightsRead(model, size, batch, part) {  // bytes that a step reads, of shares of the parameters
    var read = readParameters(model, batch);
    return Object.keys(read).reduce(function (sum, kind) { return sum + (part ? part[kind] : 1) * size[kind] * read[kind]; }, 0);
  }

  // One answer on one device, which reads `weights` bytes of them for each token: FLOP and bytes by part, as cost_parts with
  // share_prompt=False.
  function costParts(model, size, policy, nIn, nOut, square, weights, denseLayers) {
    var found = { parameters: [2 * model.multiplied * nOut, weights * nOut], attention: [0, 0], search: [0, 0] };
    var all = nIn * nOut + (square === undefined ? nOut * nOut : square) / 2;
    var whole = model.mixers.reduce(function (sum, m) { return sum + (m.whole ? m.count : 0); }, 0);
    model.mixers.forEach(function (m) {
      if (!m.heads) {
        found.state = found.state || [0, 0];
        found.state[0] += m.count * m.flops * nOut;
        found.state[1] += m.count * 2 * (m.recurrent * size.state + m.conv * size.conv) * nOut;
        return;
      }
      var own = recent(m, nIn, nOut, square), search = 0, searchFlops = 2 * m.index_heads * m.index, searchBytes = m.index * size.index;
      if (m.topk) { search = own; own = attended(nIn, nOut, m.topk * m.stride, square) / m.stride; }
      if (m.whole && policy.tokens !== null) {
        var thin = 1 - (denseLayers || 0) / Math.max(whole, 1);
        own = thin * attended(nIn, nOut, policy.tokens, square) + (1 - thin) * own;
        search = thin * policy.scored * all;
        searchFlops = m.score_flops;
        searchBytes = m.keys * size.kv;
      }
      found.attention[0] += m.count * m.flops * own;
      found.attention[1] += m.count * m.entry * size.kv * own;
      found.search[0] += m.count * searchFlops * search;
      found.search[1] += m.count * searchBytes * search;
    });
    return found;
  }

  // One step of `batch` sequences at `context` tokens on one device of a layout, as step_parts.
  function stepParts(model, size, layout, policy, batch, context) {
    var here = batch / layout.data, found = costParts(model, size, policy, context, 1, undefined, 0);
    found.parameters = [2 * here * model.multiplied / layout.tensor, weightsRead(model, size, batch, matrices(model, layout))];
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

  // Seconds by part at the datasheet's rates (the larger of arithmetic and traffic, a bound, or with `add` their sum), or by four
  // constants fitted to measured times.
  function stepSeconds(device, rate, clock, parts, layers, add) {
    var found = {};
    Object.keys(parts).forEach(function (name) {
      var flops = parts[name][0], bytes = parts[name][1], matrices = name === "parameters";
      if (name === "communication") { found[name] = link(device, bytes); return; }
      var computed = flops / (clock ? clock.matrix : matrices ? rate : device.peak);
      var moved = bytes / (!clock ? device.bandwidth : matrices ? clock.weights : clock.cache);
      found[name] = (add && !clock ? computed + moved : Math.max(computed, moved)) + (clock && matrices ? layers * clock.layer : 0);
    });
    return found;
  }

  function total(parts) { return Object.keys(parts).reduce(function (sum, name) { return sum + parts[name]; }, 0); }

  // Seconds to the first token, seconds of arithmetic, those of one device, and its FLOP.
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
    var work = prompt / rate + attention / device.peak, passed = weightBytes(model, size, layout) / device.bandwidth;
    return { flops: prompt + attention, work: work, first: Math.max(work / layout.tensor, passed) + link(device, sent(model, nIn, layout)) };
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

  function gb(bytes, decimals) {
    var places = decimals === undefined ? bytes < 1e10 ? 2 : 1 : decimals;
    return (bytes / 1e9).toLocaleString("en", { minimumFractionDigits: decimals || 0, maximumFractionDigits: places }) + " GB";
  }

  // --- parts of a page -----------------------------------------------------------------------------

  function make(tag, parent, text, attributes) {
    var node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    Object.keys(attributes || {}).forEach(function (name) { node.setAttribute(name, attributes[name]); });
    if (parent) parent.appendChild(node);
    return node;
  }

  function digits(x, n) {
    if (!isFinite(x)) return "unknown";
    if (x !== 0 && Math.abs(x) < 1e-3) return x.toExponential(1);
    return x.toLocaleString("en", { maximumSignificantDigits: n || 3 });
  }

  function names(table) { return Object.keys(table).map(function (name) { return [name, name, table[name].family]; }); }

  // Choices of the fields that several pages have; `value` gives what another field holds.
  function choices(data) {
    return {
      hardware: function () { return names(data.hardware).map(function (one) { return one.slice(0, 2); }); },
      devices: function () { return [["", "fewest"]].concat([1, 2, 4, 8].map(function (n) { return [String(n), n]; })); },
      clock: function (value) {
        return [["", "datasheet"]].concat(Object.keys(data.clocks).filter(function (name) {
          return name.split(":")[0] === value("hardware");
        }).map(function (name) { return [name.split(":")[1], "fitted to " + data.clocks[name].engine]; }));
      },
      stored: function (list, usual) { return function () { return [["", usual]].concat(list.map(function (name) { return [name, name]; })); }; }
    };
  }

  function fill(select, options, value) {
    select.textContent = "";
    var groups = {};
    options.forEach(function (option) {
      var parent = select;
      if (option[2]) parent = groups[option[2]] = groups[option[2]] || make("optgroup", select, null, { label: option[2] });
      make("option", parent, option[1], { value: option[0] });
    });
    select.value = options.some(function (option) { return option[0] === value; }) ? value : options[0][0];
  }

  // Boxes to tick; what is ticked is named, and all that there are by no name.
  function tick(box, options, value, key) {
    box.textContent = "";
    var wanted = (value || "").split(","), known = options.filter(function (option) { return wanted.indexOf(option[0]) >= 0; });
    options.forEach(function (option, i) {
      var label = make("label", box), input = make("input", label, null, { type: "checkbox", value: option[0], id: "kl-" + key + "-" + i });
      input.checked = !known.length || known.indexOf(option) >= 0;
      label.appendChild(document.createTextNode(" " + option[1]));
    });
  }

  // A form of fields { key, label, options | many | least and most, usual, empty, share, whole, wide, when, after, fresh }, its values first
  // those of the address. read() gives the numbers and names, or null where a field has no right value, which is said beside it.
  function form(place, fields, changed) {
    var node = make("form", place, null, { "class": "kl-calc-form" }), inputs = {}, notes = {}, boxes = {};
    var start = new URLSearchParams(location.hash.slice(1));
    function value(key) {
      var ticked = inputs[key].querySelectorAll("input"), on = [].filter.call(ticked, function (one) { return one.checked; });
      if (inputs[key].tagName !== "SPAN") return inputs[key].value.trim();
      return on.length === ticked.length ? "" : on.map(function (one) { return one.value; }).join(",") || "none";
    }
    function offer(field, given) { (field.many ? tick : fill)(inputs[field.key], (field.many || field.options)(value), given, field.key); }
    function shown() { fields.forEach(function (field) { boxes[field.key].hidden = Boolean(field.when && !field.when(value)); }); }
    fields.forEach(function (field) {
      var key = field.key, box = boxes[key] = make(field.many ? "fieldset" : "div", node, null, { "class": "kl-calc-field" + (field.wide ? " kl-wide" : "") });
      var given = start.get(key) === null ? String(field.usual === undefined ? "" : field.usual) : start.get(key);
      make(field.many ? "legend" : "label", box, field.label, field.many ? {} : { "for": "kl-" + key });
      var plain = { id: "kl-" + key, type: "text", inputmode: "decimal", autocomplete: "off" };
      inputs[key] = make(field.many ? "span" : field.options ? "select" : "input", box, null, field.options || field.many ? { id: "kl-" + key } : plain);
      if (field.options || field.many) offer(field, given); else inputs[key].value = given;
      notes[key] = make("small", box, "", { id: "kl-note-" + key, "class": "kl-calc-note" });
      (field.many ? box : inputs[key]).setAttribute("aria-describedby", "kl-note-" + key);
    });
    shown();
    node.addEventListener("submit", function (event) { event.preventDefault(); });
    node.addEventListener("input", function (event) {
      fields.forEach(function (field) {  // a choice that hangs on another one is offered anew
        var moved = (field.after || []).some(function (key) { return inputs[key] === event.target; });
        if (moved && field.fresh) inputs[field.key].value = field.fresh(value);
        else if (moved) offer(field, value(field.key));
      });
      shown();
      changed();
    });
    return {
      value: value,
      note: function (key, text) { notes[key].textContent = text; inputs[key].setAttribute("aria-invalid", text ? "true" : "false"); },
      keep: function () {
        history.replaceState(null, "", "#" + new URLSearchParams(fields.map(function (field) { return [field.key, value(field.key)]; })));
      },
      read: function () {
        var q = {}, right = true, form = this;
        fields.forEach(function (field) {
          var key = field.key, text = value(key), number = Number(text), said = "";
          if (boxes[key].hidden || (field.empty && text === "")) q[key] = null;
          else if (field.many) { q[key] = text ? text.split(",") : []; if (text === "none") said = "choose one at least"; }
          else if (field.options) q[key] = key === "devices" ? number || null : text;
          else {
            q[key] = field.share ? number / 100 : number;
            if (text === "" || !(number >= field.least && number <= field.most) || (field.whole && number % 1))
              said = "must be a " + (field.whole ? "whole " : "") + "number from " + field.least + " to " + field.most.toLocaleString("en");
          }
          form.note(key, said);
          right = right && !said;
        });
        return right ? q : null;
      }
    };
  }

  // A button that copies the command beside it; show(text) sets the command.
  function copied(place) {
    var line = make("p", place), button = make("button", line, "Copy as command", { type: "button", "class": "kl-calc-copy" }), code = make("code", line, "");
    button.addEventListener("click", function () { navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; });
    return function (text) { code.textContent = text; button.textContent = "Copy as command"; };
  }

  function rows(table, pairs) {
    table.textContent = "";
    pairs.forEach(function (pair) {
      if (!pair[1]) return;
      var line = make("tr", table);
      make("th", line, pair[0], { scope: "row" });
      make("td", line, pair[1]);
    });
  }

  // A page: `draw` fills the place with this id, which then stands for the static answer.
  function page(id, data, draw) {
    document.addEventListener("DOMContentLoaded", function () {
      var place = document.getElementById(id);
      if (!place || !data) return;
      document.querySelectorAll(".kl-calc-static").forEach(function (node) { node.hidden = true; });
      draw(place, data);
    });
  }

  root.klLaw = { weightsRead: weightsRead, costParts: costParts, stepParts: stepParts, stepSeconds: stepSeconds, prefill: prefill, precision: precision, fit: fit, total: total,
    gb: gb, make: make, digits: digits, names: names, choices: choices, form: form, copied: copied, rows: rows, page: page };
})(this);
