/* What Python sees of csrc/crew.c. */

#define UF_CREW_MOST ...

struct uf_crew {
    uint32_t count;
    uint32_t call_permille;
    uint32_t leave_permille;
    uint32_t on_duty[...];
    int ring_fd[...];
};
