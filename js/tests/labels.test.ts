import { describe, expect, it } from "vitest";
import { axisLabel, displayLabel, fitText } from "../src/labels";

describe("labels as they are drawn", () => {
  it("shows white space", () => {
    expect(displayLabel(" the")).toBe("·the");
    expect(displayLabel("a\n\tb")).toBe("a↵⇥b");
    expect(displayLabel("")).toBe("∅");
  });

  it("spells out what would hide or reorder its surroundings", () => {
    expect(displayLabel("\u202eevil")).toBe("‹202E›evil");
    expect(displayLabel("\u2066a\u2069")).toBe("‹2066›a‹2069›");
    expect(displayLabel("a\u200bb\u0000\u001b\u007f")).toBe("a‹200B›b‹00›‹1B›‹7F›");
    expect(displayLabel("\u2028\ufeff\u{e0041}")).toBe("‹2028›‹FEFF›‹E0041›");
  });

  it("leaves ordinary writing alone", () => {
    expect(displayLabel("مرحبا")).toBe("مرحبا");
    expect(displayLabel("naïve 東京 <b>")).toBe("naïve·東京·<b>");
    expect(displayLabel("👩‍👩‍👧❤️")).toBe("👩‍👩‍👧❤️");
  });

  it("tames lone surrogates and heaps of combining marks", () => {
    expect(displayLabel("\ud800x")).toBe("\ufffdx");
    expect(displayLabel("\u0301")).toBe("\u25cc\u0301");
    expect(displayLabel(`a${"\u0323".repeat(50)}b`)).toBe("a\u0323\u0323b");
  });

  it("cuts very long labels", () => {
    expect([...displayLabel("x".repeat(10_000))]).toHaveLength(201);
  });

  it("names special tokens without their brackets, and only those", () => {
    expect(axisLabel("<|endoftext|>", 2)).toBe("endoftext");
    expect(axisLabel("</s>", 2)).toBe("</s>");
    expect(axisLabel("<s>", 2)).toBe("s");
    expect(axisLabel("[CLS]", 2)).toBe("CLS");
    expect(axisLabel("<b>", 0)).toBe("<b>");
  });
});

describe("fitting text", () => {
  const measure = (text: string) => 10 * [...text].length;

  it("keeps what fits and cuts the rest with an ellipsis", () => {
    expect(fitText("hello", 50, measure)).toBe("hello");
    expect(fitText("hello", 49, measure)).toBe("hel…");
    expect(fitText("hello", 20, measure)).toBe("h…");
    expect(fitText("hello", 1, measure)).toBe("…");
  });

  it("never cuts through a character", () => {
    expect(fitText("🙂🙂🙂", 25, measure)).toBe("🙂…");
  });
});
