/** Colours for canvases, read from the custom properties `--ess-*` of the page. */

export interface Theme {
  bg: string;
  fg: string;
  /** Secondary text. */
  muted: string;
  /** Axes and hair-lines. */
  rule: string;
  /** The brushed position and H_i. */
  accent: string;
  /** The selected head. */
  series: string;
  /** The other heads. */
  seriesFaint: string;
  /** What lies beyond a limit. */
  shade: string;
  delimiter: string;
  span: string;
  /** Behind what is read, and behind what is past. */
  field: string;
  past: string;
  /** A font family. */
  font: string;
  /** Name of the colour map of operators. */
  colours: string;
  dark: boolean;
}

type Palette = Omit<Theme, "font" | "colours" | "dark">;

const properties: Record<keyof Palette, string> = {
  bg: "--ess-bg",
  fg: "--ess-fg",
  muted: "--ess-muted",
  rule: "--ess-rule",
  accent: "--ess-accent",
  series: "--ess-series",
  seriesFaint: "--ess-series-faint",
  shade: "--ess-shade",
  delimiter: "--ess-delimiter",
  span: "--ess-span",
  field: "--ess-field",
  past: "--ess-past",
};

/** For pages without the style sheet. */
const light: Palette = {
  bg: "#ffffff",
  fg: "#1f2328",
  muted: "#5c6470",
  rule: "#c9ced6",
  accent: "#c8400d",
  series: "#1a5fb4",
  seriesFaint: "#a9b4c2",
  shade: "#eef0f3",
  delimiter: "#4a7fb5",
  span: "rgba(200, 64, 13, 0.12)",
  field: "#f5f6f8",
  past: "#e3e8f0",
};
const dark: Palette = {
  bg: "#16181c",
  fg: "#e6e8eb",
  muted: "#a3abb6",
  rule: "#454b55",
  accent: "#ff8a5c",
  series: "#6cb2ff",
  seriesFaint: "#5c6775",
  shade: "#23272e",
  delimiter: "#7fb2e5",
  span: "rgba(255, 138, 92, 0.18)",
  field: "#1f232a",
  past: "#2b323c",
};
const systemFont = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";

let pixel: CanvasRenderingContext2D | null = null;

/** Red, green, blue (0 … 255) and alpha (0 … 1) of any CSS colour. */
export function parseColour(colour: string): [number, number, number, number] {
  const numbers = /^rgba?\(([^)]*)\)$/
    .exec(colour)?.[1]
    ?.match(/[\d.]+/g)
    ?.map(Number);
  if (numbers && numbers.length >= 3 && !colour.includes("%")) {
    return [numbers[0]!, numbers[1]!, numbers[2]!, numbers[3] ?? 1];
  }
  const hex = /^#([\da-f]{6})$/i.exec(colour)?.[1];
  if (hex !== undefined) {
    const value = parseInt(hex, 16);
    return [value >> 16, (value >> 8) & 255, value & 255, 1];
  }
  if (!pixel) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    pixel = canvas.getContext("2d", { willReadFrequently: true });
  }
  if (!pixel) return [0, 0, 0, 0];
  pixel.clearRect(0, 0, 1, 1);
  pixel.fillStyle = "#000";
  pixel.fillStyle = colour;
  pixel.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pixel.getImageData(0, 0, 1, 1).data;
  return [r!, g!, b!, a! / 255];
}

/** Relative luminance, 0 … 1, as WCAG defines it. */
export function luminance(colour: string): number {
  const [r, g, b] = parseColour(colour).map((value) => {
    const c = value / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r! + 0.7152 * g! + 0.0722 * b!;
}

/** The same colour with another opacity. */
export function withAlpha(colour: string, alpha: number): string {
  const [r, g, b] = parseColour(colour);
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}

/**
 * The theme that holds at `element`. Custom properties may be any CSS colour, expressions included, so a
 * probe resolves them to what a canvas understands.
 */
export function readTheme(element: Element): Theme {
  const probe = document.createElement("span");
  probe.style.cssText = "position:absolute;visibility:hidden;pointer-events:none";
  element.append(probe);
  const style = getComputedStyle(probe);
  const declared = (property: string) => style.getPropertyValue(property).trim() !== "";
  const resolve = (property: string, fallback: string) => {
    if (!declared(property)) return fallback;
    probe.style.color = "";
    probe.style.color = `var(${property})`;
    return style.color || fallback;
  };
  const sheet = declared("--ess-bg") ? "--ess-bg" : "--jp-layout-color1";
  let bg = resolve(sheet, light.bg);
  if (parseColour(bg)[3] === 0) bg = style.colorScheme.includes("dark") ? dark.bg : light.bg;
  const isDark = luminance(bg) < 0.18;
  const fallback = isDark ? dark : light;
  const colours = style.getPropertyValue("--ess-colours").trim();
  const theme = { ...fallback, bg, dark: isDark, font: systemFont, colours };
  for (const key of Object.keys(properties) as (keyof Palette)[]) {
    if (key !== "bg") theme[key] = resolve(properties[key], fallback[key]);
  }
  if (declared("--ess-font")) {
    probe.style.fontFamily = "var(--ess-font)";
    theme.font = style.fontFamily || systemFont;
  }
  probe.remove();
  return theme;
}

export function sameTheme(a: Theme, b: Theme): boolean {
  return (Object.keys(a) as (keyof Theme)[]).every((key) => a[key] === b[key]);
}

/** Calls `callback` after the page may have changed its theme; returns the way to stop. */
export function onThemeChange(callback: () => void): () => void {
  let frame: number | null = null;
  const later = () => {
    frame ??= requestAnimationFrame(() => {
      frame = null;
      callback();
    });
  };
  const observer = new MutationObserver(later);
  const attributeFilter = [
    "class",
    "style",
    "data-jp-theme-name",
    "data-jp-theme-light",
    "data-theme",
    "data-color-mode",
    "data-vscode-theme-kind",
  ];
  for (const element of [document.documentElement, document.body]) {
    observer.observe(element, { attributes: true, attributeFilter });
  }
  const system = typeof matchMedia === "function" ? matchMedia("(prefers-color-scheme: dark)") : null;
  system?.addEventListener("change", later);
  return () => {
    observer.disconnect();
    system?.removeEventListener("change", later);
    if (frame !== null) cancelAnimationFrame(frame);
  };
}
