/** Bundles the widget into the Python package: `node esbuild.mjs [--watch]`. */
import { build, context } from "esbuild";

const watch = process.argv.includes("--watch");

/** @type {import("esbuild").BuildOptions} */
const options = {
  entryPoints: [
    { in: "src/widget.ts", out: "widget" },
    { in: "src/style.css", out: "widget" },
  ],
  outdir: "../ess_widgets/widgets/static",
  bundle: true,
  format: "esm",
  target: ["es2022", "chrome111", "firefox115", "safari16.4"],
  minify: !watch,
  sourcemap: watch ? "inline" : false,
  legalComments: "none",
  banner: {
    js: "/*! ess_widgets, Apache-2.0. Contains modules of d3, copyright Mike Bostock, ISC licence. */",
  },
  // A host page's AMD loader must not capture a module that is bundled here.
  define: { "define.amd": "false" },
  logLevel: "info",
};

if (watch) await (await context(options)).watch();
else await build(options);
