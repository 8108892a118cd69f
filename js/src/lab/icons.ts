/** The extension's icon: a lower triangle with the block H marked in it. */
import { LabIcon } from "@jupyterlab/ui-components";

export const memoryIcon = new LabIcon({
  name: "ess-widgets:memory",
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 16 16">
  <g class="jp-icon3" fill="#616161">
    <path d="M2 2.2 L2 14 L13.8 14 Z M3.4 5.6 L10.4 12.6 L3.4 12.6 Z" fill-rule="evenodd"/>
    <rect x="3.4" y="9" width="3.4" height="3.6"/>
  </g>
</svg>`,
});
