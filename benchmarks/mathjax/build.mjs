// Bundles mathjax.js for the browser: node build.mjs OUT.js (see README.md).
import { build } from "esbuild";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
// Of each face the letters that the book's formulas use, or may come to use; what is missing shows in the page's font.
const KEPT = [[0x20, 0x7e], [0xa0, 0x2ff], [0x300, 0x3ff], [0x2000, 0x206f], [0x20d0, 0x214f], [0x2190, 0x21ff],
  [0x2200, 0x22ff], [0x2308, 0x230b], [0x23b0, 0x23ff], [0x25a0, 0x25ff], [0x27e8, 0x27ef], [0x2a7d, 0x2ab0], [0xe000, 0xe3ff],
  [0x1d434, 0x1d467], [0x1d538, 0x1d56b], [0x1d6e2, 0x1d71b]];
const FACES = { normal: KEPT, bold: [[0x20, 0x7e], [0x391, 0x3c9]], "tex-mathit": [], italic: [[0x20, 0x7e]], "bold-italic": [],
  "double-struck": KEPT, largeop: KEPT, smallop: KEPT, "tex-size3": KEPT, "tex-size4": KEPT, "tex-variant": KEPT,
  "tex-calligraphic": KEPT, script: KEPT };
const subset = {
  name: "subset",
  setup(bundle) {
    bundle.onLoad({ filter: /\/output\/svg\/fonts\/tex\/[\w-]+\.js$/ }, ({ path }) => {
      const kept = FACES[path.match(/([\w-]+)\.js$/)[1]] || [];
      const faces = Object.entries(require(path)).map(([name, glyphs]) => {
        const some = Object.entries(glyphs).filter(([c]) => kept.some(([a, b]) => +c >= a && +c <= b));
        return `exports.${name} = ${JSON.stringify(Object.fromEntries(some))};`;
      });
      return { contents: faces.join("\n") };
    });
  },
};
await build({
  entryPoints: ["mathjax.js"], outfile: process.argv[2], bundle: true, minify: true, target: "es2018", plugins: [subset],
  legalComments: "none", banner: { js: "/* MathJax 3.2.2 (Apache License 2.0), cut to what this book uses: see README.md */" },
});
