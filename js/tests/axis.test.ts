import { describe, expect, it } from "vitest";
import { Axis, labelMiddle, nearestPosition, pan, thinLabels, windows, zoomAt } from "../src/axis";

const axis = new Axis(100, 500, 0, 40);

describe("axis", () => {
  it("puts token j between boundaries j and j + 1", () => {
    expect(axis.cell).toBe(10);
    expect(axis.at(0)).toBe(100);
    expect(axis.at(40)).toBe(500);
    expect(Math.floor(axis.invert(axis.at(7) + 0.1))).toBe(7);
    expect(Math.floor(axis.invert(axis.at(7) - 0.1))).toBe(6);
  });

  it("means the nearest boundary that has a token to its right", () => {
    expect(nearestPosition(axis, 144, 40)).toBe(4);
    expect(nearestPosition(axis, 146, 40)).toBe(5);
    expect(nearestPosition(axis, -50, 40)).toBe(0);
    expect(nearestPosition(axis, 9999, 40)).toBe(39);
    expect(nearestPosition(new Axis(0, 100, 0, 1), 99, 1)).toBe(0);
  });
});

describe("labels along an axis", () => {
  it("stay inside at the ends, and are not moved elsewhere", () => {
    expect(labelMiddle(50, 20, 0, 100)).toBe(50);
    expect(labelMiddle(98, 20, 0, 100)).toBe(90);
    expect(labelMiddle(3, 20, 0, 100)).toBe(10);
  });

  it("are all there where they fit, and never closer than the gap where not", () => {
    expect(thinLabels(axis, 40, 10, [])).toHaveLength(40);
    for (const gap of [11, 12.5, 33, 70]) {
      const marks = Array.from({ length: 40 }, (_, k) => (k % 7 === 3 ? 2 : 0));
      const chosen = thinLabels(axis, 40, gap, marks);
      expect(chosen.length).toBeGreaterThan(0);
      for (let k = 1; k < chosen.length; k++) {
        expect(axis.at(chosen[k]!) - axis.at(chosen[k - 1]!)).toBeGreaterThanOrEqual(gap);
      }
    }
  });

  it("prefer special tokens", () => {
    const marks = Array.from({ length: 40 }, (_, k) => (k === 17 ? 2 : 0));
    expect(thinLabels(axis, 40, 35, marks)).toContain(17);
  });

  it("stay with their tokens while the view moves", () => {
    const a = thinLabels(new Axis(0, 400, 0, 100), 1000, 20, []);
    const b = thinLabels(new Axis(0, 400, 3, 103), 1000, 20, []);
    expect(b.filter((index) => index < 97)).toEqual(a.filter((index) => index >= 3 && index < 97));
  });
});

describe("zoom", () => {
  it("keeps the point under the pointer where it is", () => {
    const zoom = zoomAt(null, 100, 2, 30, 60)!;
    expect(zoom.x[1] - zoom.x[0]).toBeCloseTo(50);
    expect((30 - zoom.x[0]) / 50).toBeCloseTo(0.3);
    expect((60 - zoom.y[0]) / 50).toBeCloseTo(0.6);
  });

  it("stays within the data and stops at four tokens", () => {
    let zoom = zoomAt(null, 100, 1.5, 0, 100);
    for (let k = 0; k < 30; k++) zoom = zoomAt(zoom, 100, 1.5, 0, 100);
    expect(zoom).toEqual({ x: [0, 4], y: [96, 100] });
    expect(zoomAt(null, 2, 3, 1, 1)).toBeNull();
  });

  it("ends where everything is shown again", () => {
    const zoom = zoomAt(null, 100, 2, 50, 50);
    expect(zoomAt(zoom, 100, 0.4, 10, 90)).toBeNull();
    expect(windows(null, 100)).toEqual({ x: [0, 100], y: [0, 100] });
  });

  it("pans to the edges and no further", () => {
    const zoom = { x: [10, 30], y: [10, 30] } as const;
    const start = { x: [...zoom.x], y: [...zoom.y] } as { x: [number, number]; y: [number, number] };
    expect(pan(start, 100, 5, -5)).toEqual({ x: [15, 35], y: [5, 25] });
    expect(pan(start, 100, 500, -500)).toEqual({ x: [80, 100], y: [0, 20] });
    expect(pan(null, 100, 5, 5)).toBeNull();
  });

  it("fits an old window to shorter data", () => {
    expect(windows({ x: [80, 100], y: [80, 100] }, 50)).toEqual({ x: [30, 50], y: [30, 50] });
    expect(windows({ x: [80, 100], y: [80, 100] }, 10)).toEqual({ x: [0, 10], y: [0, 10] });
  });
});
