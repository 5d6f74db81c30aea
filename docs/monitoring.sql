SELECT 
  executed_at,
  users_processed,
  records_processed,
  metadata->'training'->>'average_reward' as avg_reward,
  metadata->'training'->>'agent_stats' as agent_stats
FROM system_tasks
WHERE task_name = 'rl_training'
ORDER BY executed_at DESC
LIMIT 5;

SELECT 
  DATE(executed_at) as training_date,
  AVG((metadata->'training'->>'average_reward')::float) as avg_reward,
  SUM((metadata->'training'->>'users_trained')::int) as total_users
FROM system_tasks
WHERE task_name = 'rl_training'
  AND status = 'completed'
GROUP BY DATE(executed_at)
ORDER BY training_date DESC;

SELECT
  metrics->>'total_states' as total_states,
  metrics->>'total_state_actions' as total_state_actions,
  metrics->>'avg_q_value' as avg_q_value,
  metrics->>'max_q_value' as max_q_value
FROM model_versions
ORDER BY version DESC
LIMIT 1;
