/** The launcher's card: a copy of the tour, made beside the user's own files where there is none yet. */
import type { JupyterFrontEnd } from "@jupyterlab/application";
import { PageConfig, PathExt, URLExt } from "@jupyterlab/coreutils";
import { ServerConnection } from "@jupyterlab/services";

const NAME = "ess-widgets-tour.ipynb";

/** Path of the copy in `directory`. */
export async function tourIn(app: JupyterFrontEnd, directory: string): Promise<string> {
  const { contents, serverSettings } = app.serviceManager;
  const path = PathExt.join(directory, NAME);
  const beside = (await contents.get(directory)).content as { name: string }[];
  if (beside.some(({ name }) => name === NAME)) return path;
  const folder = PageConfig.getOption("fullLabextensionsUrl");
  const { href: url } = new URL(
    URLExt.join(folder, "ess-widgets", "static", "tour.ipynb"),
    serverSettings.baseUrl,
  );
  const response = await ServerConnection.makeRequest(url, {}, serverSettings);
  if (!response.ok) throw new ServerConnection.ResponseError(response);
  const content = (await response.json()) as unknown;
  await contents.save(path, { type: "notebook", format: "json", content });
  return path;
}
