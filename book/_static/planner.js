/* The planner: what to run for a budget, how sure that is, what nearly won and what was left out.

   The answers of public models to every problem, and the resamples of the problems, come from kl-planner-data.js, which the
   build writes from the package (kinetics_lab.planner.page); the law is in law.js. The functions here are those of
   kinetics_lab.planner, and a test compares them on random questions. */
(function (root) {
  "use strict";
  var law = root.klLaw, TIE = 0.6, RESERVE = 0.1;

  // --- what is drawn, as planner/strategy.py ---------------------------------------------------------

  // For j = 0..most draws: the chance that none is accepted, that a right one is, that none is and the j-th is right.
  function checked(n, c, most, hit, alarm) {
    var none = [1], right = [0], last = [0], waiting = [1];
    for (var j = 0; j < most; j++) {
      var rest = Math.max(n - j, 1), next = [], good = 0, left = 0, before = 0;
      for (var r = 0; r < waiting.length; r++) {
        var ofRight = waiting[r] * Math.max(c - r, 0) / rest;
        next[r] = (1 - alarm) * waiting[r] * Math.max(n - c - (j - r), 0) / rest + (1 - hit) * before;
        good += ofRight;
        before = ofRight;
      }
      if (hit < 1) next.push((1 - hit) * before);
      next.forEach(function (chance) { left += chance; });
      right.push(right[j] + hit * good);
      last.push((1 - hit) * good);
      none.push(left);
      waiting = next;
    }
    return { none: none, right: right, last: last };
  }

  function choose(n, k) {
    var found = 1;
    for (var i = 1; i <= k; i++) found = found * (n - k + i) / i;
    return k < 0 || k > n ? 0 : found;
  }

  function vote(n, c, most, differ) {  // bounds: all wrong answers agree, or no two do
    var found = 0;
    for (var r = 0; r <= most; r++) {
      var wrong = most - r, won = differ ? (r === 1 ? 1 / most : r > 1 ? 1 : 0) : r > wrong ? 1 : r === wrong ? 0.5 : 0;
      found += won && choose(c, r) * choose(n - c, wrong) / choose(n, most) * won;
    }
    return found;
  }

  function round(x) { return Math.round(x * 1e12) / 1e12; }  // equal but for rounding is equal

  // Of n answers with c right ones, for N = 0..n: accuracy, at best, answers drawn, paid for (in answers), waves of them.
  function outcomes(n, c, q) {
    var judge = q.strategy === "verified" ? [q.hit, q.false_alarm, q.check || 0] : [1, 0, 0], one = checked(n, c, n, judge[0], judge[1]);
    var found = { accuracy: [0], best: [0], draws: [0], paid: [0], waves: [0] }, drawn = 0, all = q.strategy === "best-of" || q.strategy === "majority";
    for (var k = 1; k <= n; k++) {
      drawn += one.none[k - 1];
      var voted = q.strategy === "majority", right = round(voted ? vote(n, c, k, false) : one.right[k] + one.last[k]);
      found.accuracy.push(right);
      found.best.push(voted ? round(vote(n, c, k, true)) : right);
      found.draws.push(all ? k : drawn);
      found.paid.push(all ? k : drawn * (1 + judge[2]));
      found.waves.push(all ? 1 : drawn);
    }
    return found;
  }

  // The mean over what could have been drawn: of a measured setting one count, of a predicted one several, [right answers, their share].
  function averaged(n, counts, q, known) {
    var each = counts.map(function (one) { var key = 65 * n + one[0]; return (known[key] = known[key] || outcomes(n, one[0], q)); }), found = {};
    if (each.length === 1) return each[0];
    Object.keys(each[0]).forEach(function (name) {
      var mean = found[name] = new Array(n + 1).fill(0);
      counts.forEach(function (one, i) { for (var k = 0; k <= n; k++) mean[k] += one[1] * each[i][name][k]; });
    });
    found.accuracy = found.accuracy.map(round);
    found.best = found.best.map(round);
    return found;
  }

  // --- the data ------------------------------------------------------------------------------------

  // A set with its packed numbers read, once: settings { model, policy, prompt, n, c (tallied), mean, square, predicted }, and weights [resample, problem].
  function read(set, digits) {
    if (set.read) return set.read;
    var size = set.problems.length, value = {}, weights = new Float64Array(1000 * size), total;
    digits.split("").forEach(function (letter, i) { value[letter] = i; });
    function numbers(text, widths) {
      var at = 0, found = [];
      while (at < text.length) {
        found.push(widths.map(function (width) {
          for (total = 0; width > 0; width--) total = total * 81 + value[text[at++]];
          return total;
        }));
      }
      return found;
    }
    function tally(drawn) {
      return drawn.filter(function (c, i) { return drawn.indexOf(c) === i; }).map(function (c) {
        return [c, drawn.filter(function (other) { return other === c; }).length / drawn.length];
      });
    }
    numbers(set.resamples, [1]).forEach(function (pair, i) { weights[2 * i] = Math.floor(pair[0] / 9) / size; weights[2 * i + 1] = pair[0] % 9 / size; });
    set.read = { weights: weights, settings: set.settings.map(function (one) {
      var long = one[5][0] + one[5][1], draws = one[6].length / size - long, widths = [];  // digits of lengths; a digit for each count
      for (var j = 0; j < draws; j++) widths.push(1);
      var rows = numbers(one[6], widths.concat(one[5])), n = rows.map(function (_, p) { return one[3].length ? one[3][p] : one[3]; });
      function length(j) { return rows.map(function (row, p) { return row[draws + j] / (one[4][j] || n[p]); }); }
      return { model: one[0], policy: one[1], prompt: set.prompts[one[2]], n: n, c: rows.map(function (row) { return tally(row.slice(0, draws)); }),
        mean: length(0), square: length(1), predicted: draws > 1 };
    }) };
    return set.read;
  }

  function kind(policy) { return policy.split(":")[0]; }

  function kinds(set) {
    var found = {};
    set.settings.forEach(function (one) { found[kind(one[1])] = true; });
    return Object.keys(found);
  }

  // The settings with oracle top-k as asked for, and how each reads: as planner.offers.offered.
  function offered(data, settings, topk, predicted) {
    return settings.filter(function (one) { return (topk !== "out" || kind(one.policy) !== "topk") && (predicted || !one.predicted); }).map(function (one) {
      var oracle = kind(one.policy) === "topk", scan = oracle && topk === "scan", reads = data.policies[one.policy];
      return Object.assign({}, one, { policy: one.policy + (scan ? ":false" : ""), oracle: oracle && !scan,
        reads: scan ? { tokens: reads.tokens, scored: 1 } : reads });
    });
  }

  // --- what an answer costs, as planner/price.py -----------------------------------------------------

  function sum(values) {  // in the order of numpy, so that what is equal there is equal here
    var n = values.length, i, j, found = 0, r = [];
    if (n > 128) { j = n / 2 - n / 2 % 8; return sum(values.slice(0, j)) + sum(values.slice(j)); }
    if (n >= 8) {
      for (j = 0; j < 8; j++) r[j] = values[j];
      for (i = 8; i < n - n % 8; i += 8) for (j = 0; j < 8; j++) r[j] += values[i + j];
      found = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    }
    for (i = n - n % 8; i < n; i++) found += values[i];
    return found;
  }

  function mean(values) { return sum(values) / values.length; }

  // How weights and cache are stored where they are told, or all in the device's own precision.
  function precision(data, device, q) {
    if (q.weights || q.kv || q.clock) return law.precision(data, { precision: { weights: "bf16", rate: "bf16", stored: data.plain } }, q.weights, q.kv);
    var own = { kv: device.own, index: device.own, embedding: device.own, head: device.own };
    return law.precision(data, { precision: { weights: device.own, rate: data.rates[device.own] || "bf16", stored: Object.assign({}, data.plain, own) } });
  }

  // What one answer to each problem takes: seconds of a device, to the first token and for each further one; or why it is not served.
  function serve(data, set, one, q) {
    var model = data.models[one.model], device = data.hardware[q.hardware], stored = precision(data, device, q), size = stored.size;
    var tokens = sum(one.mean), held = sum(one.mean.map(function (length, p) { return one.prompt[p] * length + one.square[p] / 2; }));
    var context = Math.max(held / Math.max(tokens, 1), 1), room = law.fit(model, device, size, context, q.batch, RESERVE, q.devices);
    if (room.reason) return { reason: room.reason };
    var batch = q.batch || room.batch, rate = device.peaks[stored.rate] || device.peak, many = room.devices, tpot, each;
    var clock = q.clock && data.clocks[q.hardware + ":" + q.clock], prompts = {}, parameters = 0;
    if (clock) data.kinds.forEach(function (name) { size[name] = 2; parameters += model.parameters[name] || 0; });  // as it was measured
    if (clock) {
      var share = set.dense_layers / model.layers, step = function (reads) {
        var parts = law.costParts(model, size, reads, context, 1, undefined, law.weightsRead(model, size, batch) / batch);
        delete parts.state;
        Object.keys(parts).forEach(function (name) { parts[name] = [batch * parts[name][0], batch * parts[name][1]]; });
        return law.total(law.stepSeconds(device, rate, clock, parts, 0)) / many + model.layers * clock.layer;
      };
      tpot = (1 - share) * step(one.reads) + share * step({ tokens: null, scored: 0 });
      each = one.mean.map(function (length) { return length * tpot * many / batch; });
    } else {
      var times = 1, weights = law.weightsRead(model, size, batch) / batch;
      if (many > 1) {  // what is copied to several devices, and what goes over their link
        var spread = [room.layout, { tensor: 1, data: 1 }].map(function (layout) {
          var parts = law.stepSeconds(device, rate, null, law.stepParts(model, size, layout, one.reads, batch, context), 0, true);
          if (isNaN(parts.communication)) parts.communication = 0;
          return law.total(parts);
        });
        times = many * spread[0] / spread[1];
      }
      each = one.mean.map(function (length, p) {
        var parts = law.costParts(model, size, one.reads, one.prompt[p], length, one.square[p], weights, set.dense_layers);
        return times * law.total(law.stepSeconds(device, rate, null, parts, 0, true));
      });
      tpot = sum(each) / Math.max(tokens, 1) * batch / many;
    }
    one.prompt.forEach(function (n) {
      if (prompts[n]) return;
      var prompt = prompts[n] = law.prefill(model, device, size, rate, room.layout, n);
      if (clock) prompt.first = Math.max(prompt.flops / clock.matrix, parameters * 2 / clock.weights) / many + model.layers * clock.layer;
      if (clock) prompt.work = prompt.first * many;
    });
    return { devices: many, batch: batch, tpot: tpot, ttft: one.prompt.map(function (n) { return prompts[n].first; }),
      each: each.map(function (seconds, p) { return seconds + prompts[one.prompt[p]].work; }) };
  }

  // --- the plan, as planner/plan.py ------------------------------------------------------------------

  function text(one) { return one ? one.n + " x " + one.setting.model + ", " + one.setting.policy : ""; }

  function who(setting) { return setting.model + ", " + setting.policy; }

  function percent(share, decimals) {
    if (decimals === undefined && share >= 0.995 && share < 1) return "over 99 %";
    var even = !decimals && 100 * share % 2 === 0.5;  // halves to even, as in the package
    return (even ? Math.floor(100 * share) : (100 * share).toFixed(decimals || 0)) + " %";
  }

  // The best of them that costs no more, of equally good ones the cheapest, of equally cheap ones the first.
  function best(candidates, budget) {
    var found = null;
    candidates.forEach(function (one) {
      if (one.price > budget) return;
      if (!found || one.value > found.value || (one.value === found.value && one.price < found.price)) found = one;
    });
    return found;
  }

  function quantile(sorted, share) {
    var at = share * (sorted.length - 1), low = Math.floor(at);
    return sorted[low] + (at - low) * ((low + 1 < sorted.length ? sorted[low + 1] : sorted[low]) - sorted[low]);
  }

  // Each model's and policy's accuracy on problems drawn anew: [name][resample].
  function redrawn(weights, size, names) {
    return names.map(function (one) {
      var found = new Float64Array(1000);
      for (var b = 0; b < 1000; b++) {
        var total = 0;
        for (var p = 0; p < size; p++) total += weights[b * size + p] * one.accuracy[p];
        found[b] = total;
      }
      return found;
    });
  }

  function leftOut(considered, problems, never, refused) {
    var most = 0, found = {}, models = {};
    considered.forEach(function (one) {
      most = Math.max(most, Math.max.apply(null, one.n));
      (models[one.model] = models[one.model] || []).push(one);
    });
    Object.keys(models).forEach(function (model) {
      var reasons = models[model].map(function (one) {
        var fewest = Math.min.apply(null, one.n), those = problems.filter(function (_, p) { return one.n[p] === fewest; }), more = those.length - 1;
        var each = those.length === problems.length ? "each problem" : "problem " + those[0] + (more ? " and " + more + " more" : "");
        return refused[who(one)] || (fewest < most ? "N > " + fewest + " takes more traces (" + fewest + " of " + each + ")" : "");
      });
      var alike = reasons.length > 1 && reasons.every(function (reason) { return reason === reasons[0]; });
      models[model].forEach(function (one, i) { if (reasons[i]) found[alike ? model : who(one)] = reasons[i]; });
    });
    return Object.assign(found, never);
  }

  function neverRun(settings) {
    var models = {}, tried = {}, found = {};
    settings.forEach(function (one) {
      models[one.model] = true;
      (tried[kind(one.policy)] = tried[kind(one.policy)] || {})[one.model] = true;
    });
    Object.keys(tried).forEach(function (name) {
      var lacks = Object.keys(models).filter(function (model) { return !tried[name][model]; });
      if (lacks.length) found[name + " with " + lacks.join(", ")] = "never run";
    });
    return found;
  }

  // The plan for one budget; numbers and names in, numbers and names out. An Error says what nothing keeps.
  function plan(data, q) {
    var set = data.sets[q.data], kept = read(set, data.digits), size = set.problems.length, settings = offered(data, kept.settings, q.topk, q.predicted);
    var wanted = q.policies.length ? q.policies : kinds(set), scale = q.unit === "usd" ? q.price / 3600 : 1, refused = {}, slow = [], known = {};
    var considered = settings.filter(function (one) { return one.policy === "dense" || wanted.indexOf(kind(one.policy)) >= 0; });
    var candidates = [].concat.apply([], considered.map(function (setting) {
      var server = serve(data, set, setting, q), found = [];
      if (server.reason) { refused[who(setting)] = server.reason; return []; }
      var each = setting.c.map(function (c, p) { return averaged(setting.n[p], c, q, known); });
      for (var n = 1; n <= Math.min.apply(null, setting.n); n++) found.push(candidate(setting, server, each, n));
      var quick = found.filter(function (one) { return one.answer_s <= (q.max_seconds || Infinity) && server.tpot <= (q.max_tpot || Infinity); });
      if (!quick.length) {
        slow.push([server.tpot, found[0].answer_s]);
        refused[who(setting)] = "too slow: " + law.digits(1e3 * server.tpot) + " ms a token, " + law.digits(found[0].answer_s) + " s to an answer";
      }
      return quick;
    }));

    function candidate(setting, server, each, n) {
      var k = q.strategy === "best-of" || q.strategy === "majority" ? n : 1;
      var accuracy = each.map(function (one) { return one.accuracy[n]; }), seconds = each.map(function (one, p) { return one.paid[n] * server.each[p]; });
      var answer = q.max_seconds || q.max_tpot ? mean(waited()) : null;
      function waited() {
        return each.map(function (one, p) {
          var above = Math.sqrt(Math.max(setting.square[p] - setting.mean[p] * setting.mean[p], 0)) * (k - 1) / Math.sqrt(2 * k - 1);
          return one.waves[n] * (server.ttft[p] + (setting.mean[p] + above) * server.tpot);
        });
      }
      return { setting: setting, server: server, n: n, accuracy: accuracy, value: mean(accuracy), price: mean(seconds) * scale, answer_s: answer,
        told: function () {
          var draws = each.map(function (one) { return one.draws[n]; }), tokens = mean(draws.map(function (x, p) { return x * setting.mean[p]; }));
          var usd = mean(seconds) * (q.price || NaN) / 3600;
          return { setting: text(this), model: setting.model, policy: setting.policy, n_trials: n, oracle: setting.oracle, accuracy: this.value,
            best_case: mean(each.map(function (one) { return one.best[n]; })), cost: this.price, tokens: tokens, draws: mean(draws),
            devices: server.devices, batch: server.batch, ttft_s: mean(server.ttft), tpot_s: server.tpot, answer_s: mean(waited()), usd: usd,
            usd_per_mtok: usd / tokens * 1e6 };
        } };
    }

    if (!candidates.length) {
      throw new Error(slow.length ? "No setting keeps the limits: the fastest takes " + law.digits(Math.min.apply(null, slow.map(function (x) { return x[0]; })))
        + " s a token, the shortest " + law.digits(Math.min.apply(null, slow.map(function (x) { return x[1]; }))) + " s to an answer."
        : "No model can be served: " + Object.keys(refused).map(function (name) { return refused[name]; }).filter(function (why, i, all) {
          return all.indexOf(why) === i; }).join("; ") + ".");
    }
    var mine = candidates.filter(function (one) { return wanted.indexOf(kind(one.setting.policy)) >= 0; }), budget = q.budget || 1e9;
    var left = leftOut(considered, set.problems, neverRun(settings), refused), chosen = best(mine, budget);
    if (!mine.length) throw new Error("No setting with this attention can be served.");
    var dense = best(candidates.filter(function (one) { return one.setting.policy === "dense"; }), budget);
    var result = { left_out: left, n_settings: mine.length, dense: dense ? dense.value : NaN, dense_setting: text(dense), rivals: [] };
    if (!chosen) {
      var least = mine.reduce(function (a, b) { return b.price < a.price ? b : a; });
      return Object.assign(result, { setting: "", cheapest: text(least), least: least.price });
    }
    return Object.assign(result, chosen.told(), rivalry(kept.weights, size, mine, budget, chosen, set.ends));
  }

  // How the winner fares against every other model and policy on problems drawn anew.
  function rivalry(weights, size, mine, budget, chosen, ends) {
    var groups = {};
    mine.forEach(function (one) { (groups[who(one.setting)] = groups[who(one.setting)] || []).push(one); });
    var names = Object.keys(groups).map(function (name) { return best(groups[name], budget); }).filter(Boolean);
    names.sort(function (a, b) { return a.price - b.price; });
    var draws = redrawn(weights, size, names), me = names.findIndex(function (one) { return one.setting === chosen.setting; });
    var sorted = Float64Array.from(draws[me]).sort(), won = names.map(function () { return 0; }), i, b;
    var found = { low: quantile(sorted, ends[0]), high: quantile(sorted, ends[1]), runner_up: "", rivals: [], predicted: chosen.setting.predicted ? [who(chosen.setting)] : [] };
    draws = draws.map(function (values) { return values.map(function (x) { return Math.round(x * 1e9) / 1e9; }); });
    for (b = 0; b < 1000; b++) {
      var top = 0;
      for (i = 1; i < names.length; i++) if (draws[i][b] > draws[top][b]) top = i;
      won[top] += 1;
    }
    won = won.map(function (count) { return count / 1000; });
    found.again = won[me];
    var others = names.map(function (_, i) { return i; }).filter(function (i) { return i !== me; }), second = others[0], beats = 0;
    if (!others.length) return found;
    others.forEach(function (i) { if (round(names[i].value) > round(names[second].value)) second = i; });
    for (b = 0; b < 1000; b++) beats += me < second ? draws[me][b] >= draws[second][b] : draws[me][b] > draws[second][b];
    var near = [second];
    Object.assign(found, { runner_up: text(names[second]), runner_up_accuracy: names[second].value, beats: beats / 1000 });
    if (found.again < TIE) {
      var often = others.filter(function (i) { return won[i] >= 0.1; }).sort(function (a, b) { return won[b] - won[a] || a - b; });
      near = often.length ? often.concat(second) : near;
      found.rivals = (often.length ? often : near).map(function (i) { return who(names[i].setting) + " (" + percent(won[i]) + ")"; });
    }
    found.predicted = [me].concat(near).map(function (i) { return names[i].setting; }).filter(function (one, i, all) {
      return one.predicted && all.indexOf(one) === i; }).map(who).sort();
    return found;
  }

  // The line that prints the same numbers.
  function command(q) {
    var words = ["kinetics-lab plan --data", q.data, "--budget", q.budget || 1e9];
    if (q.unit !== "s") words.push("--unit", q.unit);
    if (q.strategy === "verified") words.push("--strategy", ["verified", q.hit, q.false_alarm].concat(q.check ? [q.check] : []).join(":"));
    else if (q.strategy !== "until-right") words.push("--strategy", q.strategy);
    words.push("--hardware", q.hardware);
    [["--weights", q.weights], ["--kv", q.kv], ["--clock", q.clock && "fitted:" + q.hardware + ":" + q.clock], ["--price", q.price],
      ["--max-seconds-per-answer", q.max_seconds], ["--max-tpot", q.max_tpot], ["--policies", q.policies.join(" ")],
      ["--topk", q.topk !== "out" && q.topk], ["--batch", q.batch], ["--devices", q.devices]].forEach(function (pair) {
      if (pair[1]) words.push(pair[0], pair[1]);
    });
    return words.concat(q.predicted ? "--predicted" : []).join(" ");
  }

  root.klPlanner = { plan: plan, command: command };

  // --- the page ------------------------------------------------------------------------------------

  var STRATEGIES = [["until-right", "stop at the first right answer"], ["best-of", "pay for all, keep a right one"],
    ["verified", "an imperfect judge stops"], ["majority", "take the most frequent answer"]];
  var TOPK = [["out", "left out: no engine has it"], ["scan", "scores every key, and pays"], ["free", "for nothing, as in the paper"]];

  law.page("kl-planner", root.klPlannerData, function (place, data) {
    var usual = data.first, offers = law.choices(data);
    function pairs(names) { return names.map(function (name) { return [name, name]; }); }
    function set(value) { return data.sets[value("data")]; }
    function judged(value) { return value("strategy") === "verified"; }
    function sparse(value) { return kinds(set(value)).indexOf("topk") >= 0; }
    var form = law.form(place, [
      { key: "data", label: "Answers of", wide: true, options: function () {
        return Object.keys(data.sets).map(function (name) { return [name, data.sets[name].title]; }); }, usual: usual.data },
      { key: "budget", label: "Budget (empty: any)", least: 1e-15, most: 1e9, empty: true, usual: usual.budget[0], after: ["data", "unit"],
        fresh: function (value) { return value("unit") === "usd" ? Number((set(value).budget * 2.5 / 3600).toPrecision(2)) : set(value).budget; } },
      { key: "unit", label: "Budget in", options: function () { return [["s", "seconds"], ["usd", "dollars"]]; } },
      { key: "hardware", label: "Device", options: offers.hardware, usual: usual.hardware },
      { key: "devices", label: "Devices", options: offers.devices },
      { key: "clock", label: "Clock", options: offers.clock, after: ["hardware"] },
      { key: "weights", label: "Weights", options: offers.stored(data.weights, "as the device") },
      { key: "kv", label: "KV cache", options: offers.stored(data.caches, "as the device") },
      { key: "strategy", label: "Strategy", wide: true, options: function () { return STRATEGIES; } },
      { key: "hit", label: "Right ones accepted (0 to 1)", least: 0, most: 1, usual: 0.9, when: judged },
      { key: "false_alarm", label: "Wrong ones accepted (0 to 1)", least: 0, most: 1, usual: 0.1, when: judged },
      { key: "check", label: "Cost of a check (of an answer)", least: 0, most: 1e3, usual: 0, when: judged },
      { key: "topk", label: "Oracle top-k", wide: true, options: function () { return TOPK; }, when: sparse },
      { key: "policies", label: "Attention to allow", after: ["data", "topk"], many: function (value) {
        return pairs(kinds(set(value)).filter(function (name) { return name !== "topk" || value("topk") !== "out"; })); } },
      { key: "predicted", label: "Settings never run", options: function () { return [["", "left out"], ["yes", "let in, predicted"]]; },
        when: function (value) { return read(set(value), data.digits).settings.some(function (one) { return one.predicted; }); } },
      { key: "max_seconds", label: "Most s to an answer", least: 1e-9, most: 1e9, empty: true },
      { key: "max_tpot", label: "Most s a token", least: 1e-9, most: 1e6, empty: true },
      { key: "batch", label: "Batch (empty: fits)", least: 1, most: 1e9, whole: true, empty: true },
      { key: "price", label: "Price ($ an hour)", least: 0.0001, most: 1e4, empty: true, usual: usual.price }], show);
    var said = law.make("p", place, "", { "class": "kl-calc-said", "aria-live": "polite" }), table = law.make("table", place, null, { "class": "kl-calc-table" });
    var copy = law.copied(place), left = law.make("div", place);

    function show() {
      var q = form.read(), found;
      if (q && q.clock && (q.weights || q.kv)) { form.note("clock", "was fitted with weights and cache in BF16: leave those as the device"); q = null; }
      if (q && q.unit === "usd" && !q.price) { form.note("price", "a budget in dollars needs a price"); q = null; }
      table.textContent = left.textContent = "";
      if (!q) { said.textContent = "A field needs another value."; return; }
      q.topk = q.topk || "out";
      form.keep();
      copy(command(q));
      try { found = plan(data, q); } catch (error) { said.textContent = error.message; return; }
      said.textContent = verdict(found, q);
      law.rows(table, told(found, q));
      list(found.left_out, q);
    }

    function money(x, q) { return q.unit === "usd" ? "$" + law.digits(x) : law.digits(x) + " s of one device"; }

    function verdict(found, q) {
      if (!found.setting) return "Nothing fits this budget. The cheapest, " + found.cheapest + ", costs " + money(found.least, q) + " a problem.";
      var solves = percent(found.accuracy, 1) + " of the problems for " + money(found.cost, q);
      if (found.predicted.indexOf(found.model + ", " + found.policy) >= 0) solves = "a predicted " + solves;
      if (!found.rivals.length) return "Run " + found.setting + ": it solves " + solves + " a problem.";
      return "A tie with " + found.rivals.join(" and ") + ". The first, " + found.setting + ", solves " + solves + " a problem, and wins again in "
        + percent(found.again) + " of resamples, so other problems may turn the order.";
    }

    function told(found, q) {
      if (!found.setting) return [["Settings compared", found.n_settings.toLocaleString("en")]];
      var clock = data.clocks[q.hardware + ":" + q.clock], odd = [q.weights, q.kv].find(function (name) { return name && name !== "bf16" && name !== "fp8"; });
      var bound = q.strategy === "majority" && found.best_case > found.accuracy ? ", if all wrong answers agree; " + percent(found.best_case, 1) + " if no two do" : "";
      return [["Run", found.setting],
        ["Solved", percent(found.accuracy, 1) + " (" + percent(found.low, 1) + " to " + percent(found.high, 1) + " for another "
          + data.sets[q.data].problems.length + " problems, 95 %)" + bound],
        ["Wins again in", percent(found.again) + " of 1,000 resamples of the problems" + (found.rivals.length ? ": a tie with " + found.rivals.join(" and ") : "")],
        ["Nearly won", found.runner_up ? found.runner_up + ": " + percent(found.runner_up_accuracy, 1) + ", beaten in " + percent(found.beats) + " of resamples" : "nothing else fits"],
        ["Dense attention reaches", isNaN(found.dense) ? "nothing for this budget" : percent(found.dense, 1) + " with " + found.dense_setting],
        ["Cost a problem", law.digits(q.unit === "usd" ? found.cost / q.price * 3600 : found.cost) + " s of one device"
          + (q.price ? ", $" + law.digits(found.usd) + "; $" + law.digits(found.usd_per_mtok) + " a million tokens" : "")],
        ["Answers a problem", law.digits(found.draws) + " drawn in the mean, " + law.digits(found.tokens) + " tokens"],
        ["Time to an answer", law.digits(found.answer_s) + " s in the mean" + (q.strategy === "best-of" || q.strategy === "majority" ? " at most" : "") + "; "
          + law.digits(found.ttft_s) + " s to the first token, " + law.digits(1e3 * found.tpot_s) + " ms for each further one"],
        ["Runs on", found.devices + " " + q.hardware + ", " + found.batch.toLocaleString("en") + " answers side by side"],
        ["Engines", found.oracle ? "none can: oracle top-k finds its tokens for nothing" : found.policy !== "dense"
          ? "no flag of vLLM or SGLang makes it read as " + found.policy + " does; kinetics-lab generate can"
          : odd ? "no flag of vLLM or SGLang turns a BF16 checkpoint into " + odd : "vLLM and SGLang serve dense attention"],
        ["Predicted", found.predicted.length ? found.predicted.join(" and ") + ": never run; the law of difficulty says what it would do, and its own error is in no interval" : ""],
        ["Times are", clock ? "the cost law with four constants fitted to kernels that NVIDIA's collector measured"
          : "at the datasheet's rates, arithmetic and traffic added up"]];
    }

    function list(reasons, q) {
      var by = {}, names = Object.keys(reasons), lines;
      names.forEach(function (name) { (by[reasons[name]] = by[reasons[name]] || []).push(name); });
      if (q.topk === "out" && sparse(form.value)) by["no engine offers it"] = ["oracle top-k"];
      if (!Object.keys(by).length) return;
      law.make("p", left, "Left out:");
      lines = law.make("ul", left);
      Object.keys(by).forEach(function (why) { law.make("li", lines, by[why].join("; ") + ": " + why + "."); });
    }

    show();
  });
})(this);
