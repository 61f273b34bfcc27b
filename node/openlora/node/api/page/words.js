// What states and codes mean, for people. An unknown one is shown as it is.

export const STATES = {
  seen: "Undecided",
  skipped: "Passed over",
  claiming: "Claiming",
  claimed: "Running",
  committing: "Committing",
  committed: "Challenge window",
  finalized: "Paid",
  lost: "Lost",
  failed: "Given up",
  cancelled: "Cancelled",
  expired: "Expired",
  slashed: "Slashed",
  annulled: "Annulled",
};

export const SKIPS = {
  model_not_served: "Another base model",
  adapter_unavailable: "Adapter cannot be fetched",
  adapter_refused: "Adapter is refused",
  input_unavailable: "Input cannot be fetched",
  bad_input: "Input is malformed",
  price_too_low: "Pays too little",
  client_not_allowed: "Client not on the list",
  adapter_not_allowed: "Adapter not on the list",
  not_permitted: "Adapter not for this client",
  not_invited: "Private, and not brought here",
  unknown_flags: "Asks for what this version lacks",
  output_too_large: "Answer too long to publish",
  deadline_too_near: "Deadline too near",
  over_context: "Longer than the context",
  low_disk: "Disk is full",
  low_gas: "Too little gas",
  no_stake: "Too little free stake",
  taken: "Another node was first",
  answered: "Answered by another node",
  signed_before: "Signed in an earlier lease",
  breaker_open: "Too many failures lately",
  draining: "Node is draining",
};

export const ROLES = {
  node: "Node",
  adapter: "Adapters",
  datanet: "Datanets",
  base: "Base model",
  protocol: "Protocol",
  use: "Use fees",
};

export const FINISHES = { stop: "at its end", length: "at its length limit" };

export const word = (words, key) => words[key] ?? String(key).replaceAll("_", " ");
