// Numbers with their units. Amounts are BigInt of wei until they are text: a JavaScript number would lose digits.

const WEI_DIGITS = 18;
const SMALL = 4; // decimals of a small amount

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (number) => whole.format(number);

/** Wei of the token as "12.34": as many decimals as say something, never a rounded-up total. */
export function tokens(wei) {
  const amount = BigInt(wei);
  const digits = (amount < 0n ? -amount : amount).toString().padStart(WEI_DIGITS + 1, "0");
  const units = digits.slice(0, -WEI_DIGITS);
  const decimals = digits.slice(-WEI_DIGITS);
  const sign = amount < 0n ? "−" : "";
  if (units !== "0")
    return sign + whole.format(BigInt(units)) + trimmed(decimals.slice(0, units.length > 3 ? 2 : SMALL));
  const first = decimals.search(/[1-9]/);
  if (first < 0) return "0";
  if (first >= 9) return `${sign}${amount < 0n ? -amount : amount} wei`;
  return sign + "0" + trimmed(decimals.slice(0, Math.max(SMALL, first + 3)));
}

/** The exact amount, for who points at a rounded one. */
export const exactly = (wei) => `${whole.format(BigInt(wei))} wei`;

/** With the unit. */
export const olra = (wei) => {
  const text = tokens(wei);
  return text.endsWith("wei") ? text : `${text} OLRA`;
};

const trimmed = (decimals) => {
  const kept = decimals.replace(/0+$/, "");
  return kept ? `.${kept}` : "";
};

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = number,
    unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 10 && unit ? value.toFixed(1) : whole.format(value)} ${units[unit]}`;
}

export function compact(number) {
  if (number >= 1e6) return `${short.format(number / 1e6)} M`;
  if (number >= 1e4) return `${short.format(number / 1e3)} k`;
  return number < 10 ? short.format(number) : whole.format(number);
}

export const percent = (share) => `${share > 0 && share < 0.01 ? "<1" : Math.round(share * 100)}\u202f%`;

/** The exact share of two amounts, as a number from 0 to 1. */
export const share = (part, all) =>
  BigInt(all) === 0n ? 0 : Number((BigInt(part) * 100_000n) / BigInt(all)) / 100_000;

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 172_800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} days`;
}

export const ago = (at_s, now_s = Date.now() / 1000) => (now_s - at_s < 1.5 ? "now" : `${span(now_s - at_s)} ago`);

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const atClock = (at_s) => clock.format(at_s * 1000);
export const atDay = (at_s) => day.format(at_s * 1000);
export const atMoment = (at_s) => full.format(at_s * 1000);

export const shortHex = (text) => (text.length > 14 ? `${text.slice(0, 6)}…${text.slice(-4)}` : text);
