/**
 * Bundles the browser part into the Python package: `node esbuild.mjs [--watch]`.
 *
 * The widget goes to ess_widgets/widgets/static. The JupyterLab extension is bundled to lib/lab, from where JupyterLab's
 * own builder takes it to ess_widgets/labextension; watching leaves that last step out.
 */
import { build, context } from "esbuild";
import { execFileSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";

const watch = process.argv.includes("--watch");

/** @type {import("esbuild").BuildOptions} */
const shared = {
  bundle: true,
  format: "esm",
  target: ["es2022", "chrome111", "firefox115", "safari16.4"],
  sourcemap: watch ? "inline" : false,
  legalComments: "none",
  logLevel: "info",
};

/** @type {import("esbuild").BuildOptions} */
const widget = {
  ...shared,
  entryPoints: [
    { in: "src/widget.ts", out: "widget" },
    { in: "src/style.css", out: "widget" },
  ],
  outdir: "../ess_widgets/widgets/static",
  minify: !watch,
  banner: {
    js: "/*! ess_widgets, Apache-2.0. Contains modules of d3, copyright Mike Bostock, ISC licence. */",
  },
  // A host page's AMD loader must not capture a module that is bundled here.
  define: { "define.amd": "false" },
};

/** @type {import("esbuild").BuildOptions} */
const lab = {
  ...shared,
  entryPoints: ["src/lab/index.ts", "src/lab/lab.css"],
  outdir: "lib/lab",
  // JupyterLab hands these to every extension; there must be one of each on the page.
  external: ["@jupyterlab/*", "@lumino/*", "react"],
};

if (watch) for (const options of [widget, lab]) await (await context(options)).watch();
else {
  rmSync("lib", { recursive: true, force: true });
  await Promise.all([build(widget), build(lab)]);
  const builder = "node_modules/@jupyter/builder/lib/build-labextension.js";
  const core = "node_modules/@jupyterlab/core-meta/core.package.json";
  execFileSync(process.execPath, [builder, "--core-package-file", core, "."], { stdio: "inherit" });
  // The launcher's card opens it from here, wherever the kernel runs.
  copyFileSync("../notebooks/tour.ipynb", "../ess_widgets/labextension/static/tour.ipynb");
}
