// Tell that something is done: the percentage in the window's title, a notification, a sound.

import { saved } from "./api.js";
import { imageCount, isRunning, jobs } from "./jobs.js";
import { addMenuItems } from "./main.js";
import { announce, countText, toast } from "./ui.js";

const TITLE = "sdpersonal";
const notify = saved("notify", false), sound = saved("sound", false);
const PLAIN = /^\d+ images? in [\d.]+ (s|min)\.?$/; // a message that tells no more than the gallery shows

/** Add the menu items and listen to the jobs. */
export function mountNotices() {
  addMenuItems(() => [
    ..."Notification" in window ? [{ label: "Notify me when done", checked: notify.value && Notification.permission === "granted", run: toggleNotify }] : [],
    { label: "Sound when done", checked: sound.value, run: toggleSound },
  ]);
  jobs.onChange(showTitle);
  jobs.onEnd(tellEnd);
  let trained = runningTrainings();
  jobs.onChange(() => {
    const now = runningTrainings();
    for (const [id, token] of trained) {
      const training = jobs.trainings.find(other => other.id === id);
      if (!now.has(id) && training && (training.state === "done" || training.state === "failed")) {
        tell(training.state === "done" ? `${token} is ready` : `The training of ${token} failed`, training.message ?? "");
      }
    }
    trained = now;
  });
}

const runningTrainings = () => new Map(jobs.trainings.filter(isRunning).map(training => [training.id, training.token]));

function showTitle() {
  const job = jobs.running, training = jobs.trainings.find(isRunning);
  const share = job?.total ? job.done / job.total : training?.steps ? training.step / training.steps : null;
  document.title = share === null || (!job && !training) ? TITLE : `${Math.floor(100 * share)} % · ${TITLE}`;
}

function tellEnd(job) {
  if (job.state === "failed") toast(job.message || "That failed.", { kind: "error" });
  else if (job.state === "done" && job.message) (PLAIN.test(job.message) ? announce : toast)(job.message);
  if (job.state === "stopped" || jobs.active.length > 1) return; // others go on
  const text = job.state === "done" ? `${countText(imageCount(job), "image")} done` : "Generating failed";
  tell(text, job.title ?? "");
}

function tell(title, body) {
  if (sound.value) beep();
  if (!notify.value || !document.hidden || !("Notification" in window) || Notification.permission !== "granted") return;
  const notification = new Notification(title, { body, icon: "/favicon.svg", tag: "sdpersonal" });
  notification.onclick = () => { focus(); notification.close(); };
}

async function toggleNotify() {
  if (notify.value && Notification.permission === "granted") return notify.set(false);
  const permission = await Notification.requestPermission();
  notify.set(permission === "granted");
  return toast(permission === "granted" ? "You will be notified when this tab is in the background." : "The browser does not allow notifications. Its settings for this page can.", { kind: permission === "granted" ? "good" : "error" });
}

function toggleSound() {
  sound.set(!sound.value);
  if (sound.value) beep();
}

/** Two short tones. */
function beep() {
  try {
    const context = new AudioContext(), volume = context.createGain(), tone = context.createOscillator();
    tone.connect(volume).connect(context.destination);
    const now = context.currentTime;
    tone.frequency.setValueAtTime(660, now);
    tone.frequency.setValueAtTime(880, now + 0.14);
    volume.gain.setValueAtTime(0.0001, now);
    volume.gain.exponentialRampToValueAtTime(0.15, now + 0.02);
    volume.gain.exponentialRampToValueAtTime(0.0001, now + 0.35);
    tone.start(now);
    tone.stop(now + 0.4);
    tone.onended = () => context.close();
  } catch { /* no sound device */ }
}
