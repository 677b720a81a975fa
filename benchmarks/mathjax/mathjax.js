// The mathematics of the book: TeX (base, AMS) to SVG, with MathML beside it for screen readers, and nothing else of
// MathJax: no menu, no loader of further parts, no fonts that no page uses. See README.md for how it is bundled.
import { mathjax } from "mathjax-full/js/mathjax.js";
import { TeX } from "mathjax-full/js/input/tex.js";
import { SVG } from "mathjax-full/js/output/svg.js";
import { browserAdaptor } from "mathjax-full/js/adaptors/browserAdaptor.js";
import { RegisterHTMLHandler } from "mathjax-full/js/handlers/html.js";
import { AssistiveMmlHandler } from "mathjax-full/js/a11y/assistive-mml.js";
import "mathjax-full/js/input/tex/base/BaseConfiguration.js";
import "mathjax-full/js/input/tex/ams/AmsConfiguration.js";

AssistiveMmlHandler(RegisterHTMLHandler(browserAdaptor()));

// Sphinx marks mathematics by the class "math", as \(…\) or \[…\], and leaves everything else alone.
function typeset() {
  const places = document.querySelectorAll(".math");
  if (!places.length) return;
  const book = mathjax.document(document, {
    InputJax: new TeX({ packages: ["base", "ams"] }),
    OutputJax: new SVG({ fontCache: "local" }),
  });
  for (const place of places) {
    for (const text of [...place.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE)) {
      const found = text.data.match(/\\([([])([^]*)\\[)\]]/);
      if (found) text.replaceWith(book.convert(found[2], { display: found[1] === "[" }));
    }
  }
  book.updateDocument();
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", typeset);
else typeset();
