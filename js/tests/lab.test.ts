import { describe, expect, it } from "vitest";
import { nameAt } from "../src/lab/context_menu";
import { readSettings } from "../src/lab/settings";

describe("the name under the pointer", () => {
  it("ends with the part that is pointed at", () => {
    const line = "y = pipe.model(x)";
    expect(nameAt(line, 5)).toBe("pipe");
    expect(nameAt(line, 11)).toBe("pipe.model");
    expect(nameAt(line, 15)).toBe("x");
  });
  it("is no keyword, and nothing between names", () => {
    expect(nameAt("for x in y", 1)).toBeNull();
    expect(nameAt("a  +  b", 3)).toBeNull();
  });
});

describe("settings", () => {
  it("takes what the user set", () => {
    const { options, autoRefresh } = readSettings({
      kind: "tolerance",
      tol: 0.5,
      groups: 8,
      autoRefresh: false,
    });
    expect(options).toMatchObject({ kind: "tolerance", tol: 0.5, groups: 8 });
    expect(autoRefresh).toBe(false);
  });
  it("falls back where a file edited by hand is wrong", () => {
    const { options } = readSettings({ kind: "x", tol: -1, maxTokens: "many", groups: 0 });
    expect(options).toEqual({ kind: "entropy", tol: 1e-3, max_tokens: 2048, groups: 32, scale: "log" });
  });
});
