/* What the answer pages share: the cost law, and fields whose values stand in the address.

   The functions are those of kinetics_lab.cost, and tests compare them on random settings. Nothing is loaded from
   elsewhere, nothing is sent, and what is typed is shown as text. */
const klLaw = (() => {
  "use strict";
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const total = (parts) => sum(Object.values(parts));

  // --- the law, as in cost/countings.py, cost/request.py, cost/fit.py, cost/step.py, cost/clock.py -----------------

  // The mean of `read` over lengths of which E[L] and E[L^2] are known (no second one: all have one length).
  function mean(read, nOut, square = nOut * nOut) {
    const spread = Math.sqrt(Math.max(square - nOut * nOut, 0)), wide = spread > nOut;
    const high = wide ? square / Math.max(nOut, 1e-300) : nOut + spread;
    const weight = wide ? nOut / Math.max(high, 1e-300) : 0.5;
    return weight * read(high) + (1 - weight) * read(Math.max(nOut - spread, 0));
  }

  function attended(nIn, nOut, budget, square) {
    return mean((length) => {
      const end = Math.min(budget, nIn + length), ramp = Math.max(end - nIn, 0);
      return end * length - ramp * ramp / 2;
    }, nOut, square);
  }

  function recent(m, nIn, nOut, square) {  // entries seen by each step, summed over the steps
    if (!m.chunk) return attended(nIn, nOut, m.window ?? Infinity, square) / m.stride;
    const open = nIn % m.chunk;
    const sawtooth = (n) => (Math.floor(n / m.chunk) * m.chunk ** 2 + (n % m.chunk) ** 2) / 2;
    return (mean((length) => sawtooth(open + length), nOut, square) - sawtooth(open)) / m.stride;
  }

  const held = (m, n) => Math.floor(Math.min(n, m.window ?? Infinity, m.chunk ?? Infinity) / m.stride);

  function chosen(m, n) {
    const closed = m.chunk ? Math.max(Math.ceil(n / m.chunk) - 1, 0) * m.chunk : 0;
    return Math.min(Math.floor(Math.min(n - closed, m.window ?? Infinity) / m.stride), m.topk ?? Infinity);
  }

  // A way to spread a model says which share of each kind one device has; what it does not name is split evenly.
  const share = (way, kind) => way.share[kind] ?? 1 / way.tensor;

  function weightBytes(model, size, way, parameters = model.parameters) {
    return sum(Object.entries(parameters).map(([kind, count]) => share(way, kind) * size[kind] * count));
  }

  function cacheBytes(model, size, way, n) {
    return sum(model.mixers.map((m, i) => m.count * (m.heads
      ? m.owns * held(m, n) * (way.kv[i] * size.kv * m.entry + size.index * m.index)
      : (size.state * m.recurrent + size.conv * m.conv) / way.tensor)));
  }

  function cacheRead(model, size, way, n) {
    return sum(model.mixers.filter((m) => m.heads).map((m) => m.count
      * (way.kv[model.mixers.indexOf(m)] * size.kv * m.entry * chosen(m, n) + size.index * m.index * held(m, n))));
  }

  const layoutName = ({ tensor, data }) => `tensor:${tensor}` + (data > 1 ? `,data:${data}` : "");
  const spread = ({ tensor, data }) => data > 1 ? `data parallel ${data}` : `tensor parallel ${tensor}`;
  const where = (way) => way.devices > 1 ? `${way.devices} devices (${spread(way)})` : "one device";
  const many = (device, count, one = "1 ×") => `${count > 1 ? `${count} ×` : one} ${device.title}`;

  function fit(model, device, size, context, wanted, reserve, count, layout) {
    const memory = device.memory * (1 - reserve);
    const ways = model.ways.filter((way) => layout ? layoutName(way) === layout : !count || way.devices === count);
    const tried = ways.filter((way) => !way.why).map((way) => {
      const weights = weightBytes(model, size, way), sequence = cacheBytes(model, size, way, context);
      const batch = sequence ? Math.max(Math.floor((memory - weights) / sequence), 0) * way.data : 0;
      return { way, devices: way.devices, weights, sequence, memory, batch, reason: "" };
    }).sort((a, b) => a.devices - b.devices || b.batch - a.batch || b.way.tensor - a.way.tensor);
    if (!tried.length) return { reason: `${model.name}: ${ways[0].why}`, split: true };
    const enough = tried.find(({ batch }) => batch >= (wanted || 1));
    if (enough) return enough;
    const most = tried.sort((a, b) => b.batch - a.batch || b.devices - a.devices)[0];
    return { ...most, batch: 0, reason: lacks(model, device, size, most, context, wanted || 1) };
  }

  function lacks(model, device, size, { devices, memory, weights, sequence, batch }, context, wanted) {
    const whole = weightBytes(model, size, model.ways[0]), has = devices > 1 ? "have" : "has";
    const beside = `${many(device, devices)} ${has} ${gb(memory * devices, 1)} beside the reserve`;
    const what = `${model.name}: ${gb(whole, 1)} of weights`;
    if (weights >= memory) return `${what}; ${beside}, ${Math.ceil(whole / memory)} would hold them`;
    return `${what} and ${count(wanted)} x ${gb(sequence, 2)} of cache a device at ${count(context)} tokens; `
      + `${beside}, room for ${count(batch)} sequences`;
  }

  // Bytes of the parameters that a step of so many sequences reads on one device.
  function weightsRead(model, size, batch, way = model.ways[0]) {
    const met = ({ count, each, experts, chosen }) => count * each * experts * (1 - (1 - chosen / experts) ** batch);
    const experts = sum(model.experts.map(met));
    return weightBytes(model, size, way, { ...model.parameters, embedding: 0, lookup: 0, experts });
  }

  function sent(model, tokens, way) {  // bytes that one device puts on the link
    const vector = tokens * model.hidden * 2, reduced = model.blocks * vector * 2 * (way.tensor - 1) / way.tensor;
    return reduced + (way.data > 1 ? 2 * model.routed * vector / way.tensor * (1 - 1 / way.devices) : 0);
  }

  // One answer on one device, bytes of weights left out: [FLOP, bytes] by part, as cost_parts without a shared prompt.
  function costParts(model, size, policy, nIn, nOut, square, denseLayers = 0) {
    const found = { parameters: [2 * model.multiplied * nOut, 0], attention: [0, 0], search: [0, 0] };
    const thin = 1 - denseLayers / Math.max(sum(model.mixers.map((m) => m.whole ? m.count : 0)), 1);
    function add(part, m, flops, bytes, times) {
      const [a, b] = found[part] ?? [0, 0];
      found[part] = [a + m.count * flops * times, b + m.count * bytes * times];
    }
    for (const m of model.mixers) {
      if (!m.heads) {
        add("state", m, m.flops, 2 * (m.recurrent * size.state + m.conv * size.conv), nOut);
        continue;
      }
      const seen = recent(m, nIn, nOut, square);
      const own = m.topk ? attended(nIn, nOut, m.topk * m.stride, square) / m.stride : seen;
      const thinned = m.whole && policy.tokens !== null;
      add("attention", m, m.flops, m.entry * size.kv,
        thinned ? thin * attended(nIn, nOut, policy.tokens, square) + (1 - thin) * own : own);
      const scored = policy.scored * attended(nIn, nOut, Infinity, square);
      if (thinned) add("search", m, m.score_flops, m.keys * size.kv, thin * scored);
      else if (m.topk) add("search", m, 2 * m.index_heads * m.index, m.index * size.index, seen);
    }
    return found;
  }

  // One step of `batch` sequences at `context` tokens on one device of a layout, as step_parts.
  function stepParts(model, size, way, policy, batch, context) {
    const here = batch / way.data, found = costParts(model, size, policy, context, 1);
    const kept = cacheRead(model, size, way, context) / (cacheRead(model, size, model.ways[0], context) || 1);
    const shares = { attention: kept, search: kept, state: 1 / way.tensor };
    for (const [name, [flops, bytes]] of Object.entries(found))
      found[name] = [here * flops / way.tensor, here * bytes * (shares[name] ?? 0)];
    found.parameters[1] = weightsRead(model, size, batch, way);
    return { ...found, communication: [0, sent(model, here, way)] };
  }

  // Seconds by part at the datasheet's rates (the larger of arithmetic and traffic, a bound, or with `add` their sum),
  // or by four constants fitted to measured times; over a link by its datasheet in both.
  function stepSeconds(device, rate, clock, parts, layers, add) {
    return Object.fromEntries(Object.entries(parts).map(([name, [flops, bytes]]) => {
      if (name === "communication") return [name, bytes / device.link];
      const weights = name === "parameters";
      if (clock) return [name, Math.max(flops / clock.matrix, bytes / (weights ? clock.weights : clock.cache))
        + (weights ? layers * clock.layer : 0)];
      const computed = flops / (weights ? rate : device.peak), moved = bytes / device.bandwidth;
      return [name, add ? computed + moved : Math.max(computed, moved)];
    }));
  }

  // Seconds until a prompt is read, and those of all devices that read it.
  function prefill(model, device, size, rate, way, nIn, clock) {
    const body = model.multiplied - model.parameters.head;
    const prompt = 2 * (body * nIn + model.parameters.head * Math.min(nIn, 1));
    const attention = sum(model.mixers.map((m) => {
      if (!m.heads) return m.count * m.flops * nIn;
      const seen = recent(m, 0, nIn), own = m.topk ? attended(0, nIn, m.topk * m.stride) / m.stride : seen;
      const plain = m.unabsorbed ? 2 * m.heads * m.unabsorbed * seen : Infinity;
      const pairs = m.unabsorbed && !m.topk ? plain : Math.min(m.flops * own, plain);
      return m.count * (pairs + 2 * m.index_heads * m.index * (m.topk ? seen : 0));
    }));
    const work = clock ? (prompt + attention) / clock.matrix : prompt / rate + attention / device.peak;
    const passed = weightBytes(model, size, way) / (clock ? clock.weights : device.bandwidth);
    const first = Math.max(work / way.tensor, passed) + sent(model, nIn, way) / device.link
      + (clock ? model.layers * clock.layer : 0);
    return { first, work: clock ? first * way.tensor : work };
  }

  // How a model (or all on a device) is stored, or as told: bytes by kind, names, and the rate of its arithmetic.
  function precision(data, own, weights, kv) {
    const { kv: usual } = own.stored, plain = data.stored.bf16.stored;
    const stored = weights ? { ...plain, kv: usual, index: own.stored.index } : { ...own.stored };
    if (kv && stored.index === stored.kv) stored.index = kv;
    if (kv) stored.kv = kv;
    const size = data.kinds.map((kind) => [kind, data.element_bytes[stored[kind] ?? (weights || own.weights)]]);
    return { size: Object.fromEntries(size), weights: weights || own.weights, kv: stored.kv,
      rate: weights ? data.rates[weights] ?? "bf16" : own.rate };
  }

  const count = (x) => Math.round(x).toLocaleString("en");

  function gb(bytes, decimals) {
    const least = decimals ?? 0, most = decimals ?? (bytes < 1e10 ? 2 : 1);
    return `${(bytes / 1e9).toLocaleString("en", { minimumFractionDigits: least, maximumFractionDigits: most })} GB`;
  }

  // --- parts of a page -----------------------------------------------------------------------------

  function make(tag, parent, text, attributes) {
    const node = document.createElementNS(tag === "svg" ? "http://www.w3.org/2000/svg" : parent.namespaceURI, tag);
    if (text) node.textContent = text;
    for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
    return parent.appendChild(node);
  }

  function digits(x, n = 3) {
    if (!isFinite(x)) return "unknown";
    return x !== 0 && Math.abs(x) < 1e-3 ? x.toExponential(1) : x.toLocaleString("en", { maximumSignificantDigits: n });
  }

  // Choices of the fields that both pages have: a name, or [value, text, group].
  function choices(data, usual, datasheet) {
    const fitted = (hardware) => Object.entries(data.clocks).filter(([name]) => name.startsWith(`${hardware}:`))
      .map(([name, { engine }]) => [name.split(":")[1], `fitted to ${engine}`]);
    const counts = new Set(Object.values(data.models)[0].ways.map((way) => String(way.devices)));
    return {
      hardware: { options: () => Object.entries(data.hardware).map(([name, { title }]) => [name, title]) },
      devices: { options: () => [["", "fewest"], ...counts] },
      clock: { options: (q) => [["", datasheet], ...fitted(q.hardware)] },
      weights: { options: () => [["", usual], ...data.weights] },
      kv: { options: () => [["", usual], ...data.caches] }
    };
  }

  // The choices of a select, in groups if they have some, or as boxes to tick.
  function fill(control, options, given) {
    const place = control.querySelector("span") ?? control, groups = {};
    place.textContent = "";
    for (const [value, text = value, group] of options.map((one) => [one].flat())) {
      if (control !== place) {
        const label = make("label", place), box = { type: "checkbox", name: control.name, value };
        make("input", label, "", box).checked = given.includes(value);
        label.append(` ${text}`);
      } else if (group) {
        groups[group] ??= make("optgroup", place, "", { label: group });
        groups[group].append(new Option(text, value));
      } else place.append(new Option(text, value));
    }
  }

  // The fields of a form are in its HTML, with their limits. The rule of one may say which options it has, when it is
  // there, what is wrong with its value or to be told of it, and its usual value, which it follows until another is typed;
  // what is typed is kept by its kind, if it has some. Values are first those of the address, and again when that changes.
  // read() gives numbers, names and lists, null for what is empty; null where one is not right.
  function fields(form, rules, usual, changed) {
    const found = [...form.querySelectorAll(".kl-calc-field")].map((box) => {
      const many = box.matches("fieldset"), control = many ? box : box.querySelector("select, input");
      const key = control.name, note = make("small", box, "", { id: `kl-note-${key}`, "class": "kl-calc-note" });
      control.setAttribute("aria-describedby", note.id);
      return { key, box, control, note, many, rule: rules[key] ?? {} };
    });
    const typed = (text) => text === "" ? null : isNaN(text) ? text : Number(text);

    function values() {
      const data = new FormData(form), value = (key) => typed(data.get(key) ?? "");
      return Object.fromEntries(found.map(({ key, many }) => [key, many ? data.getAll(key) : value(key)]));
    }

    function update(address) {  // each field in turn, since its choices may hang on those before it
      for (const field of found) {
        const { key, box, control, many, rule } = field, q = values();
        const options = rule.options?.(q), offered = JSON.stringify(options), kind = rule.kind?.(q) ?? "";
        const fresh = String(rule.usual?.(q) ?? usual[key] ?? ""), touched = control.value !== field.fresh;
        if (address) field.typed = {};
        else if (touched && !many) field.typed[field.kind] = control.value;
        else delete field.typed[field.kind];
        const asked = many ? (address ?? new FormData(form)).getAll(key)
          : (address ? address.get(key) : field.typed[kind]) ?? fresh;
        if (options && (address || offered !== field.offered)) fill(control, options, asked);
        if (!many && control.value !== asked) control.value = asked;
        const known = options?.map((one) => [one].flat()[0]), lacks = known ? [asked].flat().filter((one) => one && !known.includes(one)) : [];
        if (control.selectedIndex < 0) control.value = fresh;
        if (control.selectedIndex < 0) control.selectedIndex = 0;
        field.lost = lacks.length ? `${lacks.join(", ").slice(0, 60)} is not offered here${many ? ""
          : `; this is ${control.selectedOptions[0].text}`}` : "";
        if (control.type === "number") control.setCustomValidity(asked && !control.value ? "no number" : "");
        control.disabled = box.hidden = Boolean(rule.when && !rule.when(q));
        Object.assign(field, { fresh, offered, kind });
      }
    }
    const ask = () => update(new URLSearchParams(location.hash.slice(1)));
    ask();
    form.addEventListener("input", () => { update(); changed(); });
    window.addEventListener("hashchange", () => {
      if (location.hash.includes("=")) { ask(); changed(); }  // others are headings
    });

    function read() {
      const q = values();
      let right = true;
      for (const { control, note, rule, lost } of found) {
        const { step, min, max } = control, valid = control.disabled || control.validity.valid;
        const range = `${Number(min)} to ${Number(max).toLocaleString("en")}`;
        const wrong = valid ? !control.disabled && rule.wrong?.(q) || ""
          : `must be a ${step === "any" ? "" : "whole "}number from ${range}`;
        note.textContent = wrong || lost || rule.told?.(q) || "";
        note.classList.toggle("kl-told", !wrong && !lost);
        control.setAttribute("aria-invalid", wrong !== "");
        right &&= wrong === "";
      }
      return right ? q : null;
    }
    const keep = () => history.replaceState(null, "", `#${new URLSearchParams(new FormData(form))}`);
    return { read, keep };
  }

  // What the times of a page are; `datasheet` says how its two kinds of work go together.
  function times({ served }, clock, stored, devices, datasheet, chooses) {
    const percent = (error) => `${digits(100 * error, 2)}%`;
    const fitted = () => "the cost law with four constants fitted to kernels that NVIDIA's collector measured: median error "
      + `${percent(clock.error)} against the summed kernels of models it has not seen, and such sums miss measured servers `
      + `by ${percent(served.dense)} (dense models) and ${percent(served["deepseek-v3"])} (DeepSeek)`;
    const odd = clock && !(stored.weights === "bf16" && stored.kv === "bf16")
      ? `; fitted in BF16: weights (${stored.weights}) and cache (${stored.kv}) count by their bytes` : "";
    const link = devices > 1 ? "; what starts an exchange between devices is not counted" : "";
    const search = clock && chooses ? "; the kernels were of dense attention: a search over tokens starts more of them" : "";
    return (clock ? fitted() : `at the datasheet's rates, ${datasheet}`) + search + odd + link;
  }

  // A price follows the device, by the lowest listed, until one is typed.
  function price(data) {
    const listed = data.prices, { h200 } = listed, lent = (q) => !listed[q.hardware] && q.price === h200;
    const told = (q) => lent(q) ? "an H200's, 2026: type yours"
      : q.price === listed[q.hardware] ? "lowest listed in 2026" : "";
    return { usual: (q) => listed[q.hardware] ?? h200, told, at: (q) => lent(q) ? " at an H200's price" : "" };
  }

  // A command with its options; those without a value are left out.
  function line(command, options) {
    const given = Object.entries(options).filter(([, value]) => value);
    return [command, ...given.map(([name, value]) => `--${name} ${value}`)].join(" ");
  }

  function rows(table, pairs) {
    table.textContent = "";
    for (const [name, text] of pairs.filter((pair) => pair[1])) {
      const line = table.insertRow();
      make("th", line, name, { scope: "row" });
      line.insertCell().textContent = text;
    }
  }

  // A page: its place is shown, not the static answer; draw(place, data, copy) fills it, copy(text) sets the command.
  function page(id, data, draw) {
    document.addEventListener("DOMContentLoaded", () => {
      const place = document.getElementById(id);
      if (!place || !data) return;
      const button = place.querySelector(".kl-calc-copy"), line = place.querySelector("code");
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(line.textContent);
          button.textContent = "Copied";
        } catch {  // a page that may not write there, as one without https
          getSelection().selectAllChildren(line);
          button.textContent = "Selected: copy it";
        }
      });
      document.querySelectorAll(".kl-calc-static").forEach((node) => { node.hidden = true; });
      place.hidden = false;
      draw(place, data, (text) => {
        line.textContent = "";
        text.split(" ").forEach((word, i) => {  // an option breaks at no hyphen
          if (i) line.append(" ");
          make("span", line, word, word.startsWith("-") ? { "class": "pre kl-option" } : {});
        });
        button.textContent = "Copy as command";
        button.disabled = !text;
      });
    });
  }

  return { sum, total, weightsRead, costParts, stepParts, stepSeconds, prefill, precision, fit, layoutName, spread,
    where, many, gb, count, make, digits, choices, fields, price, times, line, rows, page };
})();
