/* The calculator: what fits, what a step takes, how long an answer takes and what it costs.

   The numbers of models, devices, precisions and clocks come from kl-calculator-data.js, which the build writes from
   the package (kinetics_lab.planner.page); the law is in law.js, and a test compares both with the package. */
const klCalculator = (() => {
  "use strict";
  const law = klLaw, { digits, make } = law;

  // What one question comes to in one layout; numbers in, numbers out.
  function priced(data, q) {
    const model = data.models[q.model], device = data.hardware[q.hardware], policy = data.policies[q.policy];
    const stored = law.precision(data, model.precision, q.weights, q.kv), size = stored.size;
    const rate = device.peaks[stored.rate] ?? device.peak, clock = data.clocks[`${q.hardware}:${q.clock}`];
    const room = law.fit(model, device, size, q.n_in + q.n_out, q.batch, q.reserve, q.devices, q.layout);
    if (room.split) return { room };
    const batch = q.batch || Math.max(room.batch, 1);
    const at = (n, rule = policy) =>
      law.stepSeconds(device, rate, clock, law.stepParts(model, size, room.way, rule, batch, n), model.layers);
    const seconds = {};
    for (const [place, weight] of data.nodes)
      for (const [name, part] of Object.entries(at(Math.max(q.n_in + q.n_out * place, 1))))
        seconds[name] = (seconds[name] ?? 0) + q.n_out * weight * part;
    const { first } = law.prefill(model, device, size, rate, room.way, q.n_in, clock);
    const together = law.total(at(q.n_in + q.n_out / 2));
    const decode = law.total(seconds), spent = { prefill: first * room.way.tensor };  // of one device
    for (const name of Object.keys(seconds)) spent[name] = q.answers * seconds[name] / batch * room.devices;
    const hours = law.total(spent) / 3600;
    const rounds = Math.ceil(q.answers / batch);
    return { room, batch, rounds, all: first + rounds * decode, precision: stored, spent, step_seconds: together, first, decode, wait: first + decode,
      per_user: 1 / together, per_device: batch / together / room.devices, at, clock,
      dollars: hours * q.price, per_million: hours * q.price / (q.answers * q.n_out) * 1e6 };
  }

  // The whole answer, with the layout that would cost least, where it costs 1 % less at least.
  function answer(data, q) {
    const found = priced(data, q);
    if (found.room.reason) return found;
    const others = data.models[q.model].ways.map((way) =>
      priced(data, { ...q, devices: null, layout: law.layoutName(way) })).filter(({ room }) => !room.reason);
    const least = others.reduce((a, b) => law.total(b.spent) < law.total(a.spent) ? b : a, found);
    const less = 1 - law.total(least.spent) / law.total(found.spent);
    return { ...found, cheaper: less >= 0.01 ? { way: least.room.way, less } : null };
  }

  // The context from which attention takes longer than the parameters, under a rule: between two points of the chart,
  // halved until they are next to equal. Undefined: nowhere up to a million tokens.
  const contexts = [...Array(81).keys()].map((i) => 256 * 2 ** (i * 12 / 80));
  const attends = ({ attention, search, state }) => attention + search + (state ?? 0);
  function crossing(at, rule) {
    const over = (n) => attends(at(n, rule)) >= at(n, rule).parameters;
    let high = contexts.find(over), low = contexts[contexts.indexOf(high) - 1];
    for (let i = 0; low && i < 12; i++) {
      const middle = Math.sqrt(low * high);
      if (over(middle)) high = middle; else low = middle;
    }
    return high;
  }

  // The line that prints the same numbers.
  function command(q) {
    return law.line("kinetics-lab cost", { model: q.model, hardware: q.hardware, "n-in": `${q.n_in}`, "n-out": q.n_out,
      policy: q.policy !== "dense" && q.policy, "n-trials": q.answers > 1 && q.answers, weights: q.weights, kv: q.kv,
      batch: q.batch, devices: q.devices, layout: q.layout, reserve: q.reserve !== 0.1 && `${q.reserve}`,
      clock: q.clock && `fitted:${q.hardware}:${q.clock}`, combine: "max" });
  }

  // --- the page ------------------------------------------------------------------------------------

  law.page("kl-calculator", window.klCalculatorData, (place, data, copy) => {
    const sparse = (q) => data.models[q.model].mixers.some(({ topk }) => topk);  // as it was trained
    const named = (name, q) => name === "dense" ? sparse(q) ? "its own (sparse)" : name
      : name.replace(/:false$/, ", every key scored");
    const ways = (q) => data.models[q.model].ways.filter(({ devices }) => !q.devices || devices === q.devices)
      .map((way) => [law.layoutName(way), way.devices > 1 ? law.spread(way) : "one device"]);
    const price = law.price(data), fields = law.fields(place, {
      ...law.choices(data, "as published", "datasheet, overlapping"),
      model: { options: () => Object.values(data.models).map(({ name, family }) => [name, name, family]) },
      layout: { options: (q) => [["", "most room"], ...ways(q)] },
      policy: { options: (q) => Object.keys(data.policies).map((name) => [name, named(name, q)]) },
      price
    }, { answers: 1, reserve: 10, ...data.first }, show);
    const [said, bar, legend, table, figure] = ["said", "bar", "legend", "table", "figure"]
      .map((name) => place.querySelector(`.kl-calc-${name}`));

    function show() {
      const q = fields.read();
      for (const part of [bar, legend, table, figure]) part.textContent = "";
      if (!q) { said.textContent = "A field needs another value."; copy(""); return; }
      q.reserve /= 100;
      fields.keep();
      copy(command(q));
      const found = answer(data, q), room = found.room;
      said.textContent = verdict(q, found);
      if (room.split) return;
      const told = Object.entries(found.spent).filter(([, seconds]) => seconds > 0).map(([name, seconds]) => {
        const title = `${name} ${digits(seconds)}`;
        make("span", bar, "", { "class": `kl-part-${name}`, title }).style.flexGrow = seconds / law.total(found.spent);
        return title;
      });
      legend.textContent = `${answers(q)} to a prompt take${q.answers > 1 ? "" : "s"} `
        + `${digits(law.total(found.spent))} seconds of one device: ${told.join(", ")}.`;
      law.rows(table, details(q, found));
      chart(q, found);
    }

    const answers = (q) => `${law.count(q.answers)} answer${q.answers > 1 ? "s" : ""}`;

    function verdict(q, { room, dollars, cheaper, step_seconds, wait }) {
      if (room.split) return `It cannot be spread so: ${room.reason}.`;
      if (room.reason) return `It does not fit: ${room.reason}. Priced as if it did.`;
      const many = law.many(data.hardware[q.hardware], room.devices, "one")
        + (room.devices > 1 ? `, ${law.spread(room.way)}` : "");
      const less = cheaper
        ? ` On ${law.where(cheaper.way)} an answer would cost ${(100 * cheaper.less).toFixed(0)}% less.` : "";
      return `${q.model} fits on ${many} with ${law.count(room.batch)} sequences at their end. A step takes `
        + `${digits(1e3 * step_seconds)} ms, an answer ${digits(wait)} s`
        + `${q.price ? `; ${answers(q)} to a prompt cost${q.answers > 1 ? "" : "s"} $${digits(dollars)}${price.at(q)}` : ""}.${less}`;
    }

    function details(q, found) {
      const room = found.room, cost = `${answers(q)} to a prompt $${digits(found.dollars)}`;
      return [["Weights on each device", `${law.gb(room.weights)} (${found.precision.weights})`],
        ["Cache of a sequence on each device", `${law.gb(room.sequence)} at ${law.count(q.n_in + q.n_out)} tokens `
          + `(${found.precision.kv})`],
        ["Batch", law.count(found.batch) + (room.reason ? "" : ` of ${law.count(room.batch)} that fit`)],
        ["Tokens a second", `${digits(found.per_user)} for a user, ${digits(found.per_device)} for a device`],
        ["Time to the first token", `${digits(found.first)} s, one prompt at a time`],
        ["Time to an answer", digits(found.wait) + (q.answers === 1 ? " s" : ` s; to all ${law.count(q.answers)}, `
          + `${found.rounds > 1 ? `in ${law.count(found.rounds)} rounds of the batch` : "side by side"}, ${digits(found.all)} s`)],
        ["Cost", `${cost}, a thousand such prompts $${digits(1e3 * found.dollars)}, `
          + `a million tokens $${digits(found.per_million)}`],
        ["Times are", law.times(data, found.clock, found.precision, room.devices,
          "computing while memory is read: a bound, nothing runs faster", sparse(q))],
        ["Attention", q.policy !== "dense" && `${q.policy.replace(/:false$/, "")}, which no engine serves: its kernels were not timed, and what it costs `
          + "in accuracy is not counted"]];
    }

    // Seconds that one token takes of a device, over the context: parameters, dense attention, the chosen attention.
    function chart(q, found) {
      const width = Math.max(place.clientWidth, 300), height = 300;
      const left = 58, right = width - 118, top = 26, low = height - 40;
      const own = sparse(q) ? "its own attention" : "dense attention";
      const of = (seconds) => 1e6 * seconds / found.batch * found.room.devices;
      const lines = [["parameters", "parameters", "dense"], ["attention", own, "dense"],
        ["sparse", q.policy.replace(/:false$/, ""), q.policy]].slice(0, q.policy === "dense" ? 2 : 3).map(([kind, label, policy]) => {
        const rule = data.policies[policy];
        const points = contexts.map((n) => {
          const step = found.at(n, rule);
          return [n, of(kind === "parameters" ? step.parameters : attends(step))];
        });
        return { kind, label, points, reach: kind !== "parameters" && crossing(found.at, rule) };
      });
      const logs = lines.flatMap(({ points }) => points).filter(([, y]) => y > 0).map(([, y]) => Math.log10(y));
      const y0 = Math.floor(Math.min(...logs)), y1 = Math.ceil(Math.max(...logs));
      const px = (x) => left + (right - left) * Math.log2(x / 256) / 12;
      const py = (y) => top + (low - top) * (1 - (Math.max(Math.log10(y), y0) - y0) / (y1 - y0));
      const cross = lines[1].reach;
      const overtakes = (line) => {
        const where = !line.reach ? "stays below the parameters up to a million tokens"
          : line.reach > contexts[0] ? `overtakes the parameters at about ${digits(line.reach)} tokens`
          : `costs more than the parameters from ${contexts[0]} tokens on`;
        return `${line.kind === "sparse" ? line.label : own[0].toUpperCase() + own.slice(1)} ${where} with this batch.`;
      };
      const told = lines.slice(1).map(overtakes).join(" "), searched = lines.length > 2 ? "Search included; p" : "P";
      const picture = make("svg", figure, "", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
        "aria-label": `Time of one token over the context, ${told}` });
      const text = (x, y, words, kind = "axis", anchor = "start") =>
        make("text", picture, words, { x, y, "text-anchor": anchor, "class": `kl-${kind}` });
      text(left, 14, "Device-microseconds a token");
      for (let e = y0; e <= y1; e++) {
        const y = py(10 ** e);
        make("line", picture, "", { x1: left, x2: right, y1: y, y2: y, "class": "kl-grid" });
        text(left - 6, y + 4, digits(10 ** e), "axis", "end");
      }
      for (const k of [1, 8, 64, 512]) text(px(1024 * k), low + 16, `${k}K`, "axis", "middle");
      text((left + right) / 2, height - 6, "Context (tokens)", "axis", "middle");
      for (const { kind, points } of lines) {
        const d = points.filter(([, y]) => y > 0).map(([x, y]) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("L");
        make("path", picture, "", { d: d && `M${d}`, "class": `kl-line kl-line-${kind}` });
      }
      let above = -Infinity;  // names beside the ends of their lines, one below the other
      for (const [y, line] of lines.map((line) => [py(line.points[80][1]), line]).sort(([a], [b]) => a - b)) {
        above = Math.max(y, above + 14);
        text(right + 6, above + 4, line.label, `name-${line.kind}`);
      }
      if (cross) make("circle", picture, "", { cx: px(cross), cy: py(of(found.at(cross).parameters)), r: 4, "class": "kl-cross" });
      make("figcaption", figure, `${told} ${searched}refill and communication left out.`);
    }

    window.addEventListener("resize", show);
    show();
  });

  return { answer, command, crossing };
})();
