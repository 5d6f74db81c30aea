// Decides for somebody and records what they did: node dist/smoke.js 127.0.0.1:50051
import { randomUUID } from "node:crypto";
import { credentials, Metadata, ServiceError } from "@grpc/grpc-js";
import {
  GetRecommendationParamsRequest,
  GetRecommendationParamsResponse,
  RecommendationServiceClient,
  RecordInteractionsRequest,
  RecordInteractionsResponse,
} from "./gen/recparams/v1/recommendation";
import { ContentType, Mood, Reaction, TimeOfDay } from "./gen/recparams/v1/types";

const address = process.argv[2] ?? "127.0.0.1:50051";
const client = new RecommendationServiceClient(address, credentials.createInsecure());
const deadline = () => ({ deadline: Date.now() + 5000 });

function decide(): Promise<GetRecommendationParamsResponse> {
  const request = GetRecommendationParamsRequest.fromPartial({
    userId: "ada",
    personality: {
      openness: 75,
      conscientiousness: 60,
      extraversion: 40,
      agreeableness: 80,
      neuroticism: 30,
    },
    contentType: ContentType.CONTENT_TYPE_MUSIC,
    mood: Mood.MOOD_CALM,
    timeOfDay: TimeOfDay.TIME_OF_DAY_EVENING,
  });
  return new Promise((resolve, reject) => {
    client.getRecommendationParams(request, new Metadata(), deadline(), (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

function record(decisionToken: Uint8Array): Promise<RecordInteractionsResponse> {
  const request = RecordInteractionsRequest.fromPartial({
    interactions: [
      {
        interactionId: randomUUID(),
        userId: "ada",
        decisionToken,
        reactions: [Reaction.REACTION_LIKE],
      },
    ],
  });
  return new Promise((resolve, reject) => {
    client.recordInteractions(request, new Metadata(), deadline(), (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

async function main(): Promise<void> {
  const decision = await decide();
  const recorded = await record(decision.decisionToken);
  const { params, action, modelVersion, propensity } = decision;
  console.log(JSON.stringify({ params, action, modelVersion, propensity, ...recorded }));
  client.close();
}

main().catch((error: ServiceError) => {
  console.error(`recparams: ${error.details ?? error.message}`);
  process.exit(1);
});
