// The module that a worker makes from its own tables (crates/admin/src/ui/tables.rs).
export const REASONS: Record<string, { means: string; help: string; action: "flush" | "refresh_credentials" | null }>;
export const STATES: { name: string; condition: "quiet" | "working" | "changing" | "paused" | "failing" }[];
