// Short names for the API's types, for JSDoc comments in ../ui.
import type { components } from "./api";

type Schemas = components["schemas"];

declare global {
  namespace Api {
    type Action = Schemas["Action"];
    type Actions = Schemas["Actions"];
    type Changed = Schemas["Changed"];
    type Failure = Schemas["Failure"];
    type FleetPoint = Schemas["FleetPoint"];
    type History = Schemas["History"];
    type HistoryMinute = Schemas["HistoryMinute"];
    type Timeline = Schemas["Timeline"];
    type TimelineEntry = Schemas["TimelineEntry"];
    type FleetRollout = Schemas["FleetRollout"];
    type Flush = Schemas["Flush"];
    type Overview = Schemas["Overview"];
    type QuarantineEntry = Schemas["QuarantineEntry"];
    type QuarantineOne = Schemas["QuarantineOne"];
    type QuarantinePage = Schemas["QuarantinePage"];
    type LeftBehind = Schemas["LeftBehind"];
    type LostBalance = Schemas["LostBalance"];
    type LostBalanceState = Schemas["LostBalanceState"];
    type Recovery = Schemas["Recovery"];
    type Queue = Schemas["Queue"];
    type Rollout = Schemas["Rollout"];
    type RolloutStage = Schemas["RolloutStage"];
    type Session = Schemas["Session"];
    type TenantDetail = Schemas["TenantDetail"];
    type TenantPage = Schemas["TenantPage"];
    type TenantRow = Schemas["TenantRow"];
    type Why = Schemas["Why"];
    type BalanceReport = Schemas["BalanceReport"];
    type Worker = Schemas["Worker"];
    type Workers = Schemas["Workers"];
  }
}
