// Signs in: sends the token to the service once, which sets a session cookie.
import { ask } from "./api.js";
import { byId } from "./dom.js";

export async function signedIn() {
  const session = await ask("/v1/session");
  return !session.needed || session.role != null;
}

export function signIn() {
  const [dialog, form, token, wrong] = [byId("login"), byId("login-form"), byId("token"), byId("login-wrong")];
  if (dialog.open) return Promise.resolve();
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.oncancel = (event) => event.preventDefault();
    form.onsubmit = async (event) => {
      event.preventDefault();
      try {
        await ask("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${token.value.trim()}` } });
        token.value = "";
        wrong.textContent = "";
        dialog.close();
        resolve();
      } catch (error) {
        wrong.textContent = error.message;
      }
    };
  });
}
