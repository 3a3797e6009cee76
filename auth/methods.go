// The table of methods: what right each takes, and whether it is about one namespace or the whole cluster.

package auth

import (
	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// Scope is what a method is about.
type Scope uint8

// The scopes.
const (
	// Namespaced: about what is in a namespace. The operation itself asks Identity.MayUse for which, or narrows a list
	// to the namespace of the caller.
	Namespaced Scope = iota + 1
	// ClusterWide: about what all namespaces share. Tokens that are bound to a namespace are refused.
	ClusterWide
)

// Rule is one row of the table.
type Rule struct {
	Right Right
	Scope Scope
}

// MethodLink is the row of the node link, and of the bytes beside it, which are not gRPC.
const MethodLink = "/v1/link"

// Methods is what each method takes. What is not here is refused to everybody. It is not to be changed.
var Methods = map[string]Rule{
	apiv1.SessionService_GetSession_FullMethodName:        {Read, Namespaced},
	apiv1.SessionService_ListSessions_FullMethodName:      {Read, Namespaced},
	apiv1.SessionService_WatchSessions_FullMethodName:     {Read, Namespaced},
	apiv1.SessionService_GetMessage_FullMethodName:        {Read, Namespaced},
	apiv1.SessionService_ReadLogs_FullMethodName:          {Read, Namespaced},
	apiv1.SessionService_GetSessionHistory_FullMethodName: {Read, Namespaced},
	apiv1.SessionService_SpawnSession_FullMethodName:      {Use, Namespaced},
	apiv1.SessionService_TerminateSession_FullMethodName:  {Use, Namespaced},
	apiv1.SessionService_SendMessage_FullMethodName:       {Use, Namespaced},
	apiv1.SessionService_SendMessages_FullMethodName:      {Use, Namespaced},
	apiv1.SessionService_AttachSession_FullMethodName:     {Use, Namespaced},
	apiv1.SessionService_ExecSession_FullMethodName:       {Use, Namespaced},
	apiv1.SessionService_ListCheckpoints_FullMethodName:   {Read, Namespaced},
	apiv1.SessionService_CheckpointSession_FullMethodName: {Use, Namespaced},
	apiv1.SessionService_MigrateSession_FullMethodName:    {Use, Namespaced},
	apiv1.SessionService_CancelMigration_FullMethodName:   {Use, Namespaced},
	apiv1.SessionService_PauseSession_FullMethodName:      {Use, Namespaced},
	apiv1.SessionService_ResumeSession_FullMethodName:     {Use, Namespaced},
	apiv1.SessionService_ForkSession_FullMethodName:       {Use, Namespaced},
	apiv1.SessionService_RewindSession_FullMethodName:     {Use, Namespaced},
	apiv1.SessionService_DeleteCheckpoint_FullMethodName:  {Use, Namespaced},
	apiv1.SessionService_DiffCheckpoints_FullMethodName:   {Read, Namespaced},
	apiv1.SessionService_ListFiles_FullMethodName:         {Read, Namespaced},
	// What leaves by an export is everything that the session holds, which readers do not see; they see which files there are.
	apiv1.SessionService_ReadFile_FullMethodName:      {Use, Namespaced},
	apiv1.SessionService_ExportSession_FullMethodName: {Use, Namespaced},
	apiv1.SessionService_ImportSession_FullMethodName: {Use, Namespaced},

	apiv1.QueueService_GetQueueStats_FullMethodName:    {Read, Namespaced},
	apiv1.QueueService_ListMessages_FullMethodName:     {Read, Namespaced},
	apiv1.QueueService_ListCalls_FullMethodName:        {Read, Namespaced},
	apiv1.QueueService_GetCall_FullMethodName:          {Read, Namespaced},
	apiv1.QueueService_CancelCall_FullMethodName:       {Use, Namespaced},
	apiv1.QueueService_ListDeadLetters_FullMethodName:  {Read, Namespaced},
	apiv1.QueueService_GetDeadLetter_FullMethodName:    {Read, Namespaced},
	apiv1.QueueService_RetryDeadLetters_FullMethodName: {Operate, Namespaced},
	apiv1.QueueService_PurgeDeadLetters_FullMethodName: {Operate, Namespaced},

	apiv1.EventService_ListEvents_FullMethodName:  {Read, Namespaced},
	apiv1.EventService_WatchEvents_FullMethodName: {Read, Namespaced},

	apiv1.ProviderService_ListProviders_FullMethodName: {Read, ClusterWide},
	apiv1.ProviderService_ListModels_FullMethodName:    {Read, Namespaced},
	apiv1.ProviderService_Chat_FullMethodName:          {Use, Namespaced},
	// The caller's own, and for admins those of others.
	apiv1.ProviderService_ListConversations_FullMethodName:  {Use, Namespaced},
	apiv1.ProviderService_GetConversation_FullMethodName:    {Use, Namespaced},
	apiv1.ProviderService_DeleteConversation_FullMethodName: {Use, Namespaced},

	// The record holds what everybody in the namespace said and was answered.
	apiv1.RecorderService_ListInteractions_FullMethodName:   {Operate, Namespaced},
	apiv1.RecorderService_ExportInteractions_FullMethodName: {Operate, Namespaced},

	apiv1.NodeService_ListNodes_FullMethodName:    {Read, ClusterWide},
	apiv1.NodeService_GetNode_FullMethodName:      {Read, ClusterWide},
	apiv1.NodeService_CordonNode_FullMethodName:   {Operate, ClusterWide},
	apiv1.NodeService_UncordonNode_FullMethodName: {Operate, ClusterWide},
	apiv1.NodeService_DrainNode_FullMethodName:    {Operate, ClusterWide},
	apiv1.NodeService_RemoveNode_FullMethodName:   {Operate, ClusterWide},

	apiv1.ClusterService_GetStatus_FullMethodName:          {Operate, ClusterWide},
	apiv1.ClusterService_ListDaemons_FullMethodName:        {Operate, ClusterWide},
	apiv1.ClusterService_ListMembers_FullMethodName:        {Operate, ClusterWide},
	apiv1.ClusterService_SaveSnapshot_FullMethodName:       {Operate, ClusterWide},
	apiv1.ClusterService_JoinMember_FullMethodName:         {Administer, ClusterWide},
	apiv1.ClusterService_RemoveMember_FullMethodName:       {Administer, ClusterWide},
	apiv1.ClusterService_TransferLeadership_FullMethodName: {Administer, ClusterWide},
	apiv1.ClusterService_RestoreSnapshot_FullMethodName:    {Administer, ClusterWide},

	apiv1.TokenService_CreateToken_FullMethodName: {Administer, ClusterWide},
	apiv1.TokenService_ListTokens_FullMethodName:  {Administer, ClusterWide},
	apiv1.TokenService_RevokeToken_FullMethodName: {Administer, ClusterWide},

	clusterv1.RelayService_GetServerStats_FullMethodName:        {Relay, ClusterWide},
	clusterv1.RelayService_GetServerDaemons_FullMethodName:      {Relay, ClusterWide},
	clusterv1.RelayService_GetServerProviders_FullMethodName:    {Relay, ClusterWide},
	clusterv1.RelayService_GetServerInteractions_FullMethodName: {Relay, ClusterWide},
	clusterv1.RelayService_Link_FullMethodName:                  {Relay, ClusterWide},
	clusterv1.RelayService_CommitCalls_FullMethodName:           {Relay, ClusterWide},
	clusterv1.RelayService_GetReadIndex_FullMethodName:          {Relay, ClusterWide},

	MethodLink: {LinkNode, ClusterWide},

	// Probes have no token; what they learn is whether a server is up.
	"/grpc.health.v1.Health/Check": {Public, ClusterWide},
	"/grpc.health.v1.Health/List":  {Public, ClusterWide},
	"/grpc.health.v1.Health/Watch": {Public, ClusterWide},

	// The API's shape is public, but only those who may use it need to ask a server for it.
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {Read, Namespaced},
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {Read, Namespaced},
}

// IsPublic reports whether a method may be called without a token.
func IsPublic(method string) bool { return Methods[method].Right == Public }
