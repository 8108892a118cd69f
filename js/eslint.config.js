import js from "@eslint/js";
import tseslint from "typescript-eslint";

export default tseslint.config(
  { ignores: ["node_modules", "lib"] },
  {
    files: ["**/*.ts"],
    extends: [js.configs.recommended, ...tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      // Numbers belong in strings here, and `noPropertyAccessFromIndexSignature` wants brackets.
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      // Under `noUncheckedIndexedAccess` a read inside checked bounds of a typed array needs `!`.
      "@typescript-eslint/no-non-null-assertion": "off",
      // `() => store.set(…)` as a handler reads better than a block.
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      // Labels come from the model: they are only ever set as text.
      "no-restricted-properties": [
        "error",
        { property: "innerHTML", message: "Labels are untrusted: set textContent." },
        { property: "outerHTML", message: "Labels are untrusted: set textContent." },
        { property: "insertAdjacentHTML", message: "Labels are untrusted: set textContent." },
      ],
      eqeqeq: ["error", "always", { null: "ignore" }],
      // Spreading a string into code points is what is meant: labels hold any character.
      "@typescript-eslint/no-misused-spread": ["error", { allow: ["string"] }],
    },
  },
  {
    files: ["*.js", "*.mjs"],
    extends: [js.configs.recommended],
    languageOptions: { globals: { process: "readonly", console: "readonly" } },
  },
);
